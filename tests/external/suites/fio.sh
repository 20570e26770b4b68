# Writes with checksums, reads back and compares.
cd "$directory" || exit 1
check() { # NAME ARGUMENTS...
    local name=$1
    shift
    if timeout 120 fio --name=verify --filename=data --size=48m --bs=4k-64k --bsrange=4k-64k --rw=randwrite \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=512 --output-format=terse --output=/dev/null "$@"; then
        echo "$name ok" >>"$results"
    else
        echo "$name fail" >>"$results"
    fi
    rm -f data
}
check psync --ioengine=psync
check psync-fsync --ioengine=psync --fsync=64
check psync-direct --ioengine=psync --direct=1
check libaio-direct --ioengine=libaio --direct=1 --iodepth=16
check libaio --ioengine=libaio --iodepth=16
check io_uring --ioengine=io_uring --iodepth=16
check io_uring-direct --ioengine=io_uring --direct=1 --iodepth=16
check mmap --ioengine=mmap
check truncated-early --ioengine=psync --fallocate=none --overwrite=1
