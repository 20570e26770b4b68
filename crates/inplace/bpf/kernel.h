/* The few kernel structures that scan.bpf.c reads, each with the fields it reads and no others. The loader moves every access to where
 * the running kernel has the field (CO-RE), so neither order nor size matters here; names and types do. */
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define CORE __attribute__((preserve_access_index))

struct super_block {
	unsigned int s_dev;
} CORE;

typedef struct {
	int counter;
} CORE atomic_t;

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_generation;
	atomic_t i_dio_count;
} CORE;

struct dentry {
	struct super_block *d_sb;
} CORE;

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
} CORE;

struct file {
	struct inode *f_inode;
	void *private_data;
	unsigned int f_flags;
	unsigned int f_mode;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct io_wq_work_node {
	struct io_wq_work_node *next;
} CORE;

struct io_wq_work_list {
	struct io_wq_work_node *first;
} CORE;

struct io_wq_work {
	struct io_wq_work_node list;
} CORE;

struct io_wq_acct {
	struct io_wq_work_list work_list;
} CORE;

struct io_wq {
	struct io_wq_acct acct[2];
} CORE;

struct io_worker {
	struct io_wq_work *cur_work;
} CORE;

struct io_uring_task {
	struct io_wq *io_wq;
} CORE;

struct task_struct;

typedef struct {
	long counter;
} CORE atomic_long_t;

struct mutex {
	atomic_long_t owner;
} CORE;

struct io_ring_ctx {
	struct mutex uring_lock;
} CORE;

struct io_kiocb {
	struct file *file;
	struct io_ring_ctx *ctx;
	struct io_uring_task *tctx; /* since 6.14 */
	struct task_struct *task;   /* before */
	struct io_wq_work work;
} CORE;

struct kioctx_table {
	unsigned int nr;
} CORE;

struct mm_struct {
	struct kioctx_table *ioctx_table;
} CORE;

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, flags, sp;
} CORE;

struct thread_info {
	u32 status;
} CORE;

struct thread_struct {
	unsigned long sp;
} CORE;

struct task_io_accounting {
	u64 syscw;
} CORE;

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
	unsigned int flags;
	unsigned int frozen : 1;
	int on_cpu;
	struct mm_struct *mm;
	int pid;
	int tgid;
	void *worker_private;
	u64 utime;
	unsigned long nvcsw;
	unsigned long nivcsw;
	u64 start_boottime;
	char comm[16];
	struct files_struct *files;
	struct io_uring_task *io_uring;
	struct task_io_accounting ioac;
	struct thread_struct thread;
} CORE;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 seq_num;
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

/* From the kernel's uapi/linux/bpf.h: numbers that never change. */
#define BPF_MAP_TYPE_ARRAY 2

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*const bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static long (*const bpf_seq_write)(struct seq_file *seq, const void *data, u32 size) = (void *)127;
static long (*const bpf_get_task_stack)(struct task_struct *task, void *to, u32 size, u64 flags) = (void *)141;
static long (*const bpf_task_pt_regs)(struct task_struct *task) = (void *)175;

#define SEC(name) __attribute__((section(name), used))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define COMPILER_BARRIER() asm volatile("" ::: "memory")
/* The compiler forgets what it knows of the value, and keeps it in one place. */
#define OPAQUE(value) asm volatile("" : "+r"(value))

/* Whether the running kernel has the field, and where it is. */
#define HAS_FIELD(field) __builtin_preserve_field_info(field, 2)
#define OFFSET_OF(field) __builtin_preserve_field_info(field, 0)
#define SIZE_OF(field) __builtin_preserve_field_info(field, 1)
/* For a bit field that has been loaded into 64 bits: how to get at it. */
#define LEFT_SHIFT(field) __builtin_preserve_field_info(field, 4)
#define RIGHT_SHIFT(field) __builtin_preserve_field_info(field, 5)
