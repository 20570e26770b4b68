# The stressors of class filesystem that work in a directory; those that only touch /proc, /dev or pipes are left out.
cd "$directory" || exit 1
for stressor in access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl fiemap \
    file-ioctl filename flock fpunch fsize fstat getdent handle hdd inotify io iomix lease link locka lockf lockofd mknod \
    open rename symlink sync-file touch utime xattr seek sendfile splice mmap; do
    options=()
    case $stressor in
    hdd) options=(--hdd-bytes 32m) ;;
    mmap) options=(--mmap-file --mmap-bytes 16m) ;;
    seek) options=(--seek-size 8m) ;;
    iomix) options=(--iomix-bytes 32m) ;;
    copy-file) options=(--copy-file-bytes 128m) ;;
    fallocate) options=(--fallocate-bytes 32m) ;;
    esac
    timeout --kill-after=5 60 stress-ng "--$stressor" 1 "${options[@]}" --timeout 1s --temp-path . --verify
    case $? in
    0) echo "$stressor ok" ;;
    # 3: not enough resources, 4: not implemented.
    3 | 4) echo "$stressor skip" ;;
    *) echo "$stressor fail" ;;
    esac >>"$results"
    # When its time is over in the middle, this stressor leaves a file that it made immutable or append-only.
    [ "$stressor" = chattr ] && chattr -R -f -i -a .
    find . -mindepth 1 -delete
done
