/* One look at every task of the machine: who may be inside a call that modifies one superblock.
 *
 * The programs are iterators: they run when the barrier reads them, on the reading thread, and nothing is attached to anything. They
 * decide nothing that lasts. A record says what a task looked like at one moment; src/barrier/run.rs compares records of one task and
 * concludes. What is left out here is what is shown, at this moment, to be in no such call. docs/barrier-in-place.md has the argument;
 * the letters refer to it.
 *
 * Every pointer below may be stale: its object can be freed while it is read. Reads through the verifier's typed pointers and through
 * bpf_probe_read_kernel survive that and give rubbish. Rubbish can only be read of a task that ran meanwhile, and such a task is not in
 * the call that it was in before (R), or is found by the check that it did not run (S).
 */
#include "kernel.h"

#define PF_EXITING 0x00000004
#define PF_IO_WORKER 0x00000010
#define PF_DUMPCORE 0x00000200
#define PF_KTHREAD 0x00200000
#define TASK_STOPPED 0x4
#define TASK_TRACED 0x8
#define TS_COMPAT 0x0002
#define X32_BIT 0x40000000u
#define O_CREAT 00000100
#define O_TRUNC 00001000
#define O_TMPFILE_BIT 020000000
#define FMODE_WRITE 0x2

/* Shared with src/barrier/record.rs. */
enum mode { SCAN = 0, LOCATE = 1 };
enum kind { END = 0, CALL = 1, CORE_DUMP = 2, WORKER = 3, SQPOLL = 4, QUEUE = 5, LOCATED = 6, FILE_IN_FLIGHT = 7 };
enum class { MAY_MODIFY = 0, HARMLESS = 1, OPEN_FLAGS_SECOND = 2, OPEN_FLAGS_THIRD = 3, ADVICE = 4, IOCTL = 5 };
enum off { OFF_SLEEPING = 1, OFF_RUNNING = 2, OFF_WORKER = 4, OFF_QUEUE = 8, OFF_RING = 16, OFF_CALLS = 32, OFF_SQPOLL = 64 };

#define CALLS 512
#define STACK_WORDS 2048
#define HARMLESS_IOCTLS 8
#define FUNCTIONS 80
#define FRAMES 48

/* What a function of the kernel means in the chain of calls of a task that waits. */
enum function { UNKNOWN = 0, WAITS = 1, PLACE = 2, SOCKET = 3, PASSES_ON = 4, ENTRY = 5 };

struct control {
	u64 superblock;
	u32 mode;
	s32 tid; /* LOCATE: whose descriptor */
	u32 fd;
	u32 off; /* checks that a test has switched off */
	u8 native[CALLS];
	u8 compat[CALLS];
	u32 harmless_ioctls[HARMLESS_IOCTLS];
};

struct record {
	u64 task, start;
	u64 registers, result, user_time;
	u64 work, chain, writes;
	u32 kind, pid, tgid, call;
	u32 compat, on_cpu, rings, kernel_writers;
	char comm[16];
};

struct stack {
	u64 words[STACK_WORDS];
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct control *value;
} control SEC(".maps");

/* Too big for the program's own stack. One barrier reads at a time: user space holds a lock. */
struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct stack *value;
} stack SEC(".maps");

struct functions {
	u32 count, unused;
	struct {
		u64 first, end, what;
	} list[FUNCTIONS];
};

/* Which functions user space has found in the list of the kernel's symbols; none before it has looked. */
struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct functions *value;
} functions SEC(".maps");

struct totals {
	u32 rings, kernel_writers, asynchronous;
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct totals *value;
} totals SEC(".maps");

ALWAYS_INLINE u64 load(u64 address)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (const void *)address);
	return value;
}

ALWAYS_INLINE int file_is_on(u64 file, u64 superblock)
{
	u64 inode;

	if ((s64)file >= 0)
		return 0;
	inode = load(file + OFFSET_OF(((struct file *)0)->f_inode));
	if ((s64)inode >= 0)
		return 0;
	return load(inode + OFFSET_OF(((struct inode *)0)->i_sb)) == superblock;
}

/* Whether a word is a pointer by which the superblock can be reached the way a call in progress reaches it: the superblock, an inode, a
 * directory entry, a mount or an open file of it, or a request of io_uring for such a file. A word that is no pointer, or one to
 * something else, matches only by accident, which makes a barrier wait and nothing worse. */
__attribute__((noinline)) int leads_to(u64 word, u64 superblock)
{
	/* The kernel tags pointers to open files in their low bits (struct fd). */
	u64 p = word & ~7ull;

	/* A kernel address has its top bit set, on x86-64 and on arm64. */
	if ((s64)p >= 0)
		return 0;
	if (p == superblock)
		return 1;
	if (load(p + OFFSET_OF(((struct inode *)0)->i_sb)) == superblock)
		return 1;
	if (load(p + OFFSET_OF(((struct dentry *)0)->d_sb)) == superblock)
		return 1;
	/* A superblock has, in the place of a mount's, that of the filesystem that was mounted before it (`s_list`). */
	if (load(p + OFFSET_OF(((struct vfsmount *)0)->mnt_sb)) == superblock &&
	    load(load(p + OFFSET_OF(((struct vfsmount *)0)->mnt_root)) + OFFSET_OF(((struct dentry *)0)->d_sb)) == superblock)
		return 1;
	if (file_is_on(p, superblock))
		return 1;
	if (HAS_FIELD(((struct io_kiocb *)0)->work)) {
		u64 request = p - OFFSET_OF(((struct io_kiocb *)0)->work);

		if (file_is_on(load(p + OFFSET_OF(((struct io_kiocb *)0)->file)), superblock))
			return 1;
		if (file_is_on(load(request + OFFSET_OF(((struct io_kiocb *)0)->file)), superblock))
			return 1;
	}
	return 0;
}

/* Whether a word is a pointer to a request of io_uring that this task is about to do or does: its ring is locked by the task. */
__attribute__((noinline)) int is_request_of(u64 word, u64 task, u64 ring)
{
	u64 context;

	if ((s64)word >= 0)
		return 0;
	if (HAS_FIELD(((struct io_kiocb *)0)->tctx)) {
		if (load(word + OFFSET_OF(((struct io_kiocb *)0)->tctx)) != ring)
			return 0;
	} else if (HAS_FIELD(((struct io_kiocb *)0)->task)) {
		if (load(word + OFFSET_OF(((struct io_kiocb *)0)->task)) != task)
			return 0;
	}
	/* A real-time kernel keeps the owner elsewhere. */
	if (!HAS_FIELD(((struct mutex *)0)->owner))
		return 1;
	context = load(word + OFFSET_OF(((struct io_kiocb *)0)->ctx));
	if ((s64)context >= 0)
		return 0;
	/* The low bits of the owner are flags. */
	return (load(context + OFFSET_OF(((struct io_ring_ctx *)0)->uring_lock.owner)) & ~7ull) == task;
}

#define LEADS 1
#define REQUEST 2

/* Functions of their own are verified on their own, once: within the loops below, or for each way to them in the program, the verifier
 * would try every combination. It is most of what a start costs. */
__attribute__((noinline)) int judge(u64 word, u64 superblock, u64 task, u64 ring)
{
	int found = leads_to(word, superblock) ? LEADS : 0;

	if (ring && is_request_of(word, task, ring))
		found |= REQUEST;
	return found;
}

/* What is in the first words of the copy of a stack. */
__attribute__((noinline)) int search(u32 words, u64 superblock, u64 task, u64 ring)
{
	u32 zero = 0, i;
	int found = 0;
	struct stack *copy = bpf_map_lookup_elem(&stack, &zero);

	if (!copy)
		return LEADS | REQUEST;
	for (i = 0; i < STACK_WORDS; i++) {
		if (i >= words)
			break;
		found |= judge(copy->words[i], superblock, task, ring);
	}
	return found;
}

/* A chain of calls, read from the innermost one: what may come next. */
enum chain { IN_A_WAIT, IN_ANYTHING, ON_THE_WAY, COMPLETE, NO };

/* The chain with one more caller, who goes on at this address. */
__attribute__((noinline)) u32 called_from(u32 chain, u64 address)
{
	u32 zero = 0, what = UNKNOWN, i;
	struct functions *f = bpf_map_lookup_elem(&functions, &zero);

	if (!f)
		return NO;
	for (i = 0; i < FUNCTIONS; i++) {
		if (i >= f->count)
			break;
		/* A call may be the last instruction of its function. */
		if (address - 1 >= f->list[i].first && address - 1 < f->list[i].end)
			what = f->list[i].what;
	}
	if (chain == IN_A_WAIT && what == WAITS)
		return IN_A_WAIT;
	if (chain == IN_A_WAIT && what == PLACE)
		return ON_THE_WAY;
	if (chain == IN_A_WAIT || chain == IN_ANYTHING)
		return what == SOCKET ? ON_THE_WAY : IN_ANYTHING;
	if (chain == ON_THE_WAY && what == PASSES_ON)
		return ON_THE_WAY;
	if (chain == ON_THE_WAY && what == ENTRY)
		return COMPLETE;
	return NO;
}

/* Whether the first words of the copy of a stack are a whole chain. */
__attribute__((noinline)) int is_complete(u32 frames)
{
	u32 zero = 0, i, chain = IN_A_WAIT;
	struct stack *copy = bpf_map_lookup_elem(&stack, &zero);

	if (!copy)
		return 0;
	for (i = 0; i < FRAMES; i++) {
		if (i >= frames)
			break;
		chain = called_from(chain, copy->words[i]);
	}
	return chain == COMPLETE;
}

/* (B) Whether the whole chain of calls of a task, from the entry of the system call to where it waits, is known: the call writes to a pipe,
 * a socket, a terminal or an event counter, or opens a FIFO. As in (S), the answer counts only if the task did not run meanwhile. */
ALWAYS_INLINE int waits_for_a_reader(struct task_struct *task, struct stack *room)
{
	long size = bpf_get_task_stack(task, room->words, FRAMES * 8, 0);

	/* A chain that fills the room may be cut off; its end is then not the entry. */
	return size > 0 && is_complete((u32)size / 8);
}

/* (S) Whether the task sleeps, or waits for a processor, with nothing of the superblock in its kernel stack, or (B). All registers of a task that
 * is off the processor are on its stack. The answer counts only if the task did not run while its stack was read. `ring` is not 0 for a task
 * that can be at work for a ring of io_uring only, since its call modifies nothing: then a request is in its stack, too. */
ALWAYS_INLINE int is_elsewhere(struct task_struct *task, u64 superblock, u64 ring, int is_call)
{
	unsigned long voluntary = task->nvcsw, involuntary = task->nivcsw;
	u64 bottom, top, size;
	u32 zero = 0;
	int found = ring ? 0 : REQUEST;
	u64 self;
	struct stack *copy = bpf_map_lookup_elem(&stack, &zero);

	if (!copy || task->on_cpu)
		return 0;
	COMPILER_BARRIER();
	bottom = task->thread.sp;
	/* By way of the map: the verifier does not let a program calculate with a pointer. */
	*(volatile u64 *)&copy->words[0] = (u64)bpf_task_pt_regs(task);
	top = *(volatile u64 *)&copy->words[0];
	*(volatile u64 *)&copy->words[0] = (u64)task;
	self = *(volatile u64 *)&copy->words[0];
	size = top - bottom;
	/* The comparison must be of the register that is passed on: verifiers of 6.1 follow no other. */
	OPAQUE(size);
	if (size == 0 || size > sizeof(copy->words))
		return 0;
	if (bpf_probe_read_kernel(copy->words, size, (const void *)bottom))
		return 0;
	found |= search(size / 8, superblock, self, ring);
	/* (B) Old pointers do not matter then. */
	if (found == (LEADS | REQUEST) && is_call && waits_for_a_reader(task, copy))
		found = 0;
	COMPILER_BARRIER();
	/* Set before a task runs, and counted before it stops: one of them tells. */
	if (task->on_cpu)
		return 0;
	COMPILER_BARRIER();
	if (task->nvcsw != voluntary || task->nivcsw != involuntary)
		return 0;
	return (found & (LEADS | REQUEST)) != (LEADS | REQUEST);
}

ALWAYS_INLINE int class_of(struct control *c, struct pt_regs *regs, u32 call, int compat)
{
	u32 index = compat ? call : call & ~X32_BIT;
	u64 flags;
	u8 class;
	u32 i;

	/* -1: no call. The kernel takes the low 32 bits as a signed number. */
	if ((s32)call < 0)
		return HARMLESS;
	if (c->off & OFF_CALLS)
		return HARMLESS;
	/* What is newer than the table may modify. */
	if (index >= CALLS)
		return MAY_MODIFY;
	class = compat ? c->compat[index] : c->native[index];
	if (class == OPEN_FLAGS_SECOND || class == OPEN_FLAGS_THIRD) {
		flags = class == OPEN_FLAGS_THIRD ? regs->dx : compat ? regs->cx : regs->si;
		return flags & (O_CREAT | O_TRUNC | O_TMPFILE_BIT) ? MAY_MODIFY : HARMLESS;
	}
	if (class == ADVICE) /* MADV_REMOVE and MADV_POPULATE_WRITE */
		return (u32)regs->dx == 9 || (u32)regs->dx == 23 ? MAY_MODIFY : HARMLESS;
	if (class == IOCTL) {
		u32 request = compat ? (u32)regs->cx : (u32)regs->si;

		for (i = 0; i < HARMLESS_IOCTLS; i++)
			if (c->harmless_ioctls[i] && c->harmless_ioctls[i] == request)
				return HARMLESS;
		return MAY_MODIFY;
	}
	return class;
}

ALWAYS_INLINE u64 mix(u64 sum, u64 value)
{
	sum ^= value;
	sum *= 0x9e3779b97f4a7c15ull;
	return sum ^ (sum >> 29);
}

/* Two looks at a task may take different moments of it for the same one; never the same for different ones. */
ALWAYS_INLINE u64 all_registers(struct pt_regs *regs)
{
	u64 sum = mix(0, regs->ip);

	sum = mix(sum, regs->sp);
	sum = mix(sum, regs->flags);
	sum = mix(sum, regs->di);
	sum = mix(sum, regs->si);
	sum = mix(sum, regs->dx);
	sum = mix(sum, regs->r10);
	sum = mix(sum, regs->r8);
	sum = mix(sum, regs->r9);
	sum = mix(sum, regs->bx);
	sum = mix(sum, regs->bp);
	sum = mix(sum, regs->r12);
	sum = mix(sum, regs->r13);
	sum = mix(sum, regs->r14);
	return mix(sum, regs->r15);
}

/* (P) Whether the task is stopped, traced or frozen: it gets there only on its way to user mode, past every call. The mark of a frozen
 * task may stay for a moment after that, in which it can do work for a ring. */
ALWAYS_INLINE int is_parked(struct task_struct *task, u64 ring)
{
	u64 bits = 0;

	if (task->__state & (TASK_STOPPED | TASK_TRACED))
		return 1;
	if (ring || !HAS_FIELD(task->frozen))
		return 0;
	bpf_probe_read_kernel(&bits, SIZE_OF(task->frozen), (const void *)task + OFFSET_OF(task->frozen));
	return bits << LEFT_SHIFT(task->frozen) >> RIGHT_SHIFT(task->frozen) != 0;
}

ALWAYS_INLINE void identify(struct record *r, struct task_struct *task)
{
	r->task = (u64)task;
	r->start = task->start_boottime;
	r->pid = task->pid;
	r->tgid = task->tgid;
	bpf_probe_read_kernel_str(r->comm, sizeof(r->comm), task->comm);
}

ALWAYS_INLINE int locate(struct seq_file *seq, struct task_struct *task, struct control *c)
{
	struct record r = {};
	struct fdtable *table;
	u64 files, file;

	if (task->pid != c->tid)
		return 0;
	table = task->files->fdt;
	if (c->fd >= table->max_fds)
		return 0;
	files = (u64)table->fd;
	file = load(files + 8ull * c->fd);
	if (!file)
		return 0;
	r.kind = LOCATED;
	r.work = load(load(file + OFFSET_OF(((struct file *)0)->f_inode)) + OFFSET_OF(((struct inode *)0)->i_sb));
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}

SEC("iter/task")
int scan_tasks(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	u32 zero = 0, flags;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);
	struct record r = {};
	u64 ring = 0, only_ring = 0;

	if (!c || !t)
		return 0;
	if (ctx->meta->seq_num == 0) {
		t->rings = 0;
		t->kernel_writers = 0;
		t->asynchronous = 0;
	}
	if (!task) {
		/* The scan was whole: without this record it does not count. */
		r.kind = END;
		r.rings = t->rings;
		r.kernel_writers = t->kernel_writers;
		r.call = t->asynchronous;
		/* Before 6.3 the queues of io_uring are elsewhere. */
		r.compat = !HAS_FIELD(((struct io_wq *)0)->acct);
		bpf_seq_write(seq, &r, sizeof(r));
		return 0;
	}
	if (c->mode == LOCATE)
		return locate(seq, task, c);
	flags = task->flags;
	if (flags & PF_KTHREAD) {
		u64 name = 0;

		bpf_probe_read_kernel(&name, sizeof(name), task->comm);
		if ((u32)name == 0x6473666e /* nfsd */ || (name & 0xffffffffffull) == 0x64626d736bull /* ksmbd */)
			t->kernel_writers++;
		return 0;
	}
	if (HAS_FIELD(task->io_uring))
		ring = load((u64)task + OFFSET_OF(task->io_uring));
	if (ring) {
		u64 queue = load(ring + OFFSET_OF(((struct io_uring_task *)0)->io_wq));

		t->rings++;
		if (queue && HAS_FIELD(((struct io_wq *)0)->acct) && !(c->off & OFF_QUEUE)) {
			u64 first = OFFSET_OF(((struct io_wq *)0)->acct[0].work_list.first);
			u64 second = OFFSET_OF(((struct io_wq *)0)->acct[1].work_list.first);

			if (load(queue + first) || load(queue + second)) {
				identify(&r, task);
				r.kind = QUEUE;
				r.work = queue;
				bpf_seq_write(seq, &r, sizeof(r));
				r.work = 0;
			}
		}
	}
	if (HAS_FIELD(task->mm->ioctx_table) && task->mm && task->mm->ioctx_table)
		t->asynchronous++;
	/* (X) Past every call. */
	if (flags & PF_EXITING)
		return 0;
	r.on_cpu = task->on_cpu;
	if ((flags & PF_IO_WORKER) && HAS_FIELD(((struct io_worker *)0)->cur_work)) {
		u64 worker = (u64)task->worker_private;

		if (worker) {
			if (c->off & OFF_WORKER)
				return 0;
			r.kind = WORKER;
			r.work = load(worker + OFFSET_OF(((struct io_worker *)0)->cur_work));
			if (r.work)
				r.chain = load(r.work + OFFSET_OF(((struct io_wq_work *)0)->list.next));
		} else {
			if (c->off & OFF_SQPOLL)
				return 0;
			r.kind = SQPOLL;
		}
	} else {
		struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

		if (is_parked(task, ring))
			return 0;
		r.call = regs->orig_ax;
		r.compat = task->thread_info.status & TS_COMPAT;
		r.kind = flags & PF_DUMPCORE ? CORE_DUMP : CALL;
		if (c->off & OFF_RING)
			ring = 0;
		/* Work for a ring is done at the end of any call, and without one. */
		if (r.kind == CALL && class_of(c, regs, r.call, r.compat) == HARMLESS) {
			if (!ring)
				return 0;
			only_ring = ring;
		}
		r.registers = all_registers(regs);
		r.result = regs->ax;
		r.user_time = task->utime;
		if (HAS_FIELD(task->ioac.syscw))
			r.writes = task->ioac.syscw;
	}
	if (r.on_cpu) {
		if (c->off & OFF_RUNNING)
			return 0;
	} else {
		if (c->off & OFF_SLEEPING)
			return 0;
		/* (W) A worker that sleeps elsewhere may still hold further requests, chained to the one it does. One that does none must
		 * have gone to sleep by itself: else it may be between two. */
		if (is_elsewhere(task, c->superblock, only_ring, r.kind == CALL) && (r.kind != WORKER || (r.work ? !r.chain : task->__state != 0)))
			return 0;
	}
	identify(&r, task);
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}

/* Files of the superblock with direct input or output in flight: what nobody is in a call for. */
SEC("iter/task_file")
int scan_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct record r = {};
	struct inode *inode;
	u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);

	if (!c)
		return 0;
	if (!task || !file) {
		r.kind = END;
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	inode = file->f_inode;
	if (!inode || (u64)inode->i_sb != c->superblock || !(file->f_mode & FMODE_WRITE))
		return 0;
	if (inode->i_dio_count.counter <= 0)
		return 0;
	identify(&r, task);
	r.kind = FILE_IN_FLIGHT;
	r.work = inode->i_ino;
	r.chain = inode->i_generation;
	r.call = ctx->fd;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
