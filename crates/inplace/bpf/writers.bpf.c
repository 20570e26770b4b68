/* Which regular files of one superblock some process has open for writing, or mapped writable and shared.
 *
 * The programs are iterators: they run when the source reads them, and nothing is attached to anything. src/fanotify/holders.rs reads
 * the records, and says what these looks may miss and why that does no harm.
 *
 * The few structures below have the fields that are read and no others; the loader moves every access to where the running kernel has
 * the field (CO-RE).
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define CORE __attribute__((preserve_access_index))
#define SEC(name) __attribute__((section(name), used))
/* Whether the running kernel has the field. */
#define HAS_FIELD(field) __builtin_preserve_field_info(field, 2)

struct super_block;

struct inode {
	u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	u32 i_generation;
} CORE;

struct file {
	struct inode *f_inode;
	u32 f_flags;
	u32 f_mode;
} CORE;

struct files_struct;

struct user_struct {
	unsigned long unix_inflight;
} CORE;

struct cred {
	struct user_struct *user;
} CORE;

struct task_struct {
	int pid;
	int tgid;
	u64 start_boottime;
	struct task_struct *group_leader;
	struct files_struct *files;
	void *io_uring;
	const struct cred *cred;
} CORE;

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_flags;
	struct file *vm_file;
} CORE;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} CORE;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
} CORE;

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
} CORE;

/* From the kernel's uapi/linux/bpf.h: numbers that never change. */
#define BPF_MAP_TYPE_ARRAY 2

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_seq_write)(struct seq_file *seq, const void *data, u32 size) = (void *)127;

#define S_IFMT 0170000
#define S_IFREG 0100000
#define FMODE_READ 0x1
#define FMODE_WRITE 0x2
#define O_DIRECT_BIT 040000
#define VM_SHARED 0x8

/* Shared with src/fanotify/holders.rs. */
enum kind { END = 0, OPEN = 1, MAPPING = 2, LOCATED = 3, TASK = 4 };
enum flag { READS = 1, DIRECT = 2, HIDES = 4 };

struct control {
	u64 superblock;
	u32 locate; /* tell the superblock of descriptor `fd` of process `tgid`, and nothing else */
	u32 tgid;
	u32 fd;
	u32 unused;
};

struct record {
	u64 inode;  /* its address; LOCATED: that of the superblock; TASK: when it started */
	u64 number; /* of the inode */
	u64 from, to; /* OPEN: the descriptor; MAPPING: its addresses */
	u32 generation, pid, kind, flags;
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct control *value;
} control SEC(".maps");

static inline __attribute__((always_inline)) int describe(struct record *r, struct inode *inode, u64 superblock)
{
	if (!inode || (u64)inode->i_sb != superblock || (inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	r->inode = (u64)inode;
	r->number = inode->i_ino;
	r->generation = inode->i_generation;
	return 1;
}

SEC("iter/task_file")
int writers_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct record r = {};
	u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);

	if (!c)
		return 0;
	if (!task || !file) {
		/* The look was whole: without this record it does not count. */
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	r.pid = task->pid;
	r.from = ctx->fd;
	if (c->locate) {
		struct inode *inode = file->f_inode;

		if (task->tgid != c->tgid || ctx->fd != c->fd || !inode)
			return 0;
		r.kind = LOCATED;
		r.inode = (u64)inode->i_sb;
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	if (!(file->f_mode & FMODE_WRITE) || !describe(&r, file->f_inode, c->superblock))
		return 0;
	r.kind = OPEN;
	r.flags = (file->f_mode & FMODE_READ ? READS : 0) | (file->f_flags & O_DIRECT_BIT ? DIRECT : 0);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

SEC("iter/task_vma")
int writers_maps(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct record r = {};
	struct file *file;
	u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);

	if (!c)
		return 0;
	if (!task || !vma) {
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	/* Set for shared mappings of files that were opened for writing, whatever the mapping may do at the moment. */
	if (!(vma->vm_flags & VM_SHARED))
		return 0;
	file = vma->vm_file;
	if (!file || !describe(&r, file->f_inode, c->superblock))
		return 0;
	r.kind = MAPPING;
	r.pid = task->pid;
	r.from = vma->vm_start;
	r.to = vma->vm_end;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

/* Who has a table of open files of its own; and whether there may be open files in no table. */
SEC("iter/task")
int writers_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_struct *leader;
	struct record r = {};

	if (!task) {
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	leader = task->group_leader;
	/* A ring may have registered files. A descriptor that is under way in a socket is counted for the user who has sent it. */
	if (!HAS_FIELD(task->io_uring) || task->io_uring)
		r.flags |= HIDES;
	if (!HAS_FIELD(((struct user_struct *)0)->unix_inflight))
		r.flags |= HIDES;
	else if (task->cred && task->cred->user && task->cred->user->unix_inflight)
		r.flags |= HIDES;
	if (!r.flags && task->pid != task->tgid && leader && leader->files == task->files)
		return 0;
	r.kind = TASK;
	r.pid = task->pid;
	r.inode = task->start_boottime;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
