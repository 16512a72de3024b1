// /bin/check: what a guest's user space must be able to rely on, one check by name or all of them.
//
//     check vectors      prints `vectors: ok`, or what is wrong and `vectors: FAILED`, with status 0 or 1
//     check              every check in turn, then `check: ok`
//     check list         their names
#include "check.h"

PROGRAM_ENTRY

static const struct {
	const char *name;
	int (*run)(void);
} checks[] = {
	{ "vectors", check_vectors },     { "syscalls", check_syscalls }, { "int80", check_int80 },
	{ "cpus", check_cpus },           { "signals", check_signals },   { "processes", check_processes },
	{ "memory", check_memory },       { "clock", check_clock },       { "timers", check_timers },
};

enum { CHECKS = sizeof checks / sizeof checks[0] };

static int run_check(int which)
{
	// In a process of its own: a crash is a result, too, and no check sees another's handlers or timers.
	long child = sys(fork);
	if (!child)
		leave(checks[which].run());
	int status = status_of(child);
	if (status > 0 && status & 0x7f)
		say("%s: killed by signal %d\n", checks[which].name, (long)(status & 0x7f));
	say("%s: %s\n", checks[which].name, status ? "FAILED" : "ok");
	return status != 0;
}

int run(int count, char **arguments, char **environment)
{
	(void)environment;
	// what the check of processes executes: itself, to leave with a status it was given
	if (count == 3 && same_text(arguments[1], "leave"))
		return (int)parse_number(arguments[2], 255);
	if (count == 2 && same_text(arguments[1], "list")) {
		for (int i = 0; i < CHECKS; i++)
			say("%s\n", checks[i].name);
		return 0;
	}
	if (count == 2) {
		for (int i = 0; i < CHECKS; i++)
			if (same_text(arguments[1], checks[i].name))
				return run_check(i);
		say("check: there is no check %s; `check list` names them\n", arguments[1]);
		return 2;
	}
	if (count > 2) {
		say("check: one name, or none for all checks\n");
		return 2;
	}
	int failed = 0;
	for (int i = 0; i < CHECKS; i++)
		failed += run_check(i);
	if (failed)
		say("check: %d FAILED\n", (long)failed);
	else
		say("check: ok\n");
	return failed != 0;
}
