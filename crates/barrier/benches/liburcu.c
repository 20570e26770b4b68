/* The liburcu contender of the benchmark, as a program of its own that is linked as liburcu recommends: read side
 * inline (_LGPL_SOURCE), thread-local in the program's static block.
 *
 *   liburcu sections THREADS COUNT   nanoseconds for one section, of the slowest thread
 *   liburcu barriers BUSY MS         microseconds for each barrier, one a line, for that many milliseconds
 *   liburcu only COUNT               COUNT sections and nothing else, for callgrind
 */
#define _GNU_SOURCE
#define _LGPL_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <urcu/urcu-memb.h>

static pthread_barrier_t start;
static unsigned long count;
static volatile int stop;
static unsigned long running;

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

__attribute__((noinline)) static void section(void)
{
	urcu_memb_read_lock();
	__asm__ __volatile__("" ::: "memory");
	urcu_memb_read_unlock();
}

static void sections(unsigned long n)
{
	while (n--)
		section();
}

static void *timed(void *result)
{
	double begin;

	urcu_memb_register_thread();
	sections(10000);
	pthread_barrier_wait(&start);
	begin = now_ns();
	sections(count);
	*(double *)result = (now_ns() - begin) / count;
	urcu_memb_unregister_thread();
	return NULL;
}

static void *busy(void *unused)
{
	urcu_memb_register_thread();
	sections(1000);
	__atomic_add_fetch(&running, 1, __ATOMIC_RELAXED);
	while (!stop)
		sections(1000);
	urcu_memb_unregister_thread();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	double results[64], slowest = 0;
	unsigned long n, i;

	if (argc == 3 && !strcmp(argv[1], "only")) {
		urcu_memb_register_thread();
		sections(strtoul(argv[2], NULL, 10));
		urcu_memb_unregister_thread();
		return 0;
	}
	if (argc != 4)
		return 2;
	n = strtoul(argv[2], NULL, 10);
	count = strtoul(argv[3], NULL, 10);
	if (n > 64)
		return 2;
	if (!strcmp(argv[1], "sections")) {
		pthread_barrier_init(&start, NULL, n);
		for (i = 0; i < n; i++)
			pthread_create(&threads[i], NULL, timed, &results[i]);
		for (i = 0; i < n; i++) {
			pthread_join(threads[i], NULL);
			if (results[i] > slowest)
				slowest = results[i];
		}
		printf("%f\n", slowest);
		return 0;
	}
	for (i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, busy, NULL);
	while (__atomic_load_n(&running, __ATOMIC_RELAXED) < n)
		sched_yield();
	for (double all = now_ns(); now_ns() - all < count * 1e6;) {
		double begin = now_ns();

		urcu_memb_synchronize_rcu();
		printf("%f\n", (now_ns() - begin) / 1e3);
	}
	stop = 1;
	for (i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
