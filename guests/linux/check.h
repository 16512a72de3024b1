// The checks of /bin/check: each returns 0 when all is well, or says what is wrong by `fail`.
#ifndef CHECK_H
#define CHECK_H

#include "sys.h"

// Says what went wrong, as the check's result.
#define fail(...) (say(__VA_ARGS__), 1)

int check_vectors(void);
int check_syscalls(void);
int check_int80(void);
int check_cpus(void);
int check_signals(void);
int check_processes(void);
int check_memory(void);
int check_clock(void);
int check_timers(void);

struct time {
	long seconds, nanoseconds;
};


static inline __attribute__((unused)) long nanoseconds_since_boot(void)
{
	struct time now = { 0, 0 };
	sys(clock_gettime, 1, &now);
	return now.seconds * 1000000000 + now.nanoseconds;
}

// Waits for one process and gives what wait4 says of it, or a negative error.
static inline __attribute__((unused)) int status_of(long child)
{
	int status = 0;
	long dead = sys(wait4, child, &status, 0, 0);
	return dead == child ? status : -1;
}

#endif
