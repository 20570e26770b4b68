/* The liburcu contender of the benchmark: read side inline, as liburcu recommends (_LGPL_SOURCE). */
#define _LGPL_SOURCE
#include <urcu/urcu-memb.h>

void contender_register(void) { urcu_memb_register_thread(); }
void contender_unregister(void) { urcu_memb_unregister_thread(); }
void contender_synchronize(void) { urcu_memb_synchronize_rcu(); }

__attribute__((noinline)) void contender_section(void)
{
	urcu_memb_read_lock();
	__asm__ __volatile__("" ::: "memory");
	urcu_memb_read_unlock();
}

/* The loop is here too, so that a call costs what it costs the others. */
void contender_sections(unsigned long count)
{
	while (count--)
		contender_section();
}
