// Checks of what the guest's kernel does for a process: signals, processes, memory, clocks, timers.
#include "check.h"

#include <asm/fcntl.h>
#include <linux/mman.h>
#include <asm/poll.h>
#include <asm/signal.h>

enum {
	PROCESSES = 20,
	PAGE = 4096,
	PAGES = 512,
	MILLISECOND = 1000000,
	// a host may be busy, a guest kernel interpreted: late is no failure, early and never are
	LONGEST_WAIT = 20000,
};

static volatile int last_signal, signals_seen;
static void *volatile signal_address;

// The layout of what the kernel hands to a handler, as far as these checks read it.
struct signal_info {
	int number, error, code, padding;
	void *address;
};
struct signal_context {
	unsigned long flags, link, stack[3];
	long registers[23];
};
enum { CONTEXT_RIP = 16 };

static volatile int instruction_bytes;

// Notes the signal and steps over the instruction that caused it.
static void note(int number, void *info, void *context)
{
	last_signal = number;
	signals_seen++;
	signal_address = ((struct signal_info *)info)->address;
	((struct signal_context *)context)->registers[CONTEXT_RIP] += instruction_bytes;
	// a handler may use vector registers: the interrupted program gets its own back
	__asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm15, %%xmm15" : : : "memory");
}

#define EXPECT_FAULT(what, number, bytes, ...)                                                  \
	do {                                                                                    \
		last_signal = 0;                                                                \
		instruction_bytes = bytes;                                                      \
		__asm__ volatile(__VA_ARGS__);                                                  \
		instruction_bytes = 0;                                                          \
		if (last_signal != number)                                                      \
			return fail("%s gave signal %d, not %d\n", what, (long)last_signal, (long)number); \
	} while (0)

static int faults_become_signals(void)
{
	uint8_t *nowhere = (uint8_t *)0x7000;
	EXPECT_FAULT("an undefined instruction", SIGILL, 2, "ud2");
	EXPECT_FAULT("a breakpoint", SIGTRAP, 0, "int3");
	EXPECT_FAULT("a division by zero", SIGFPE, 2, "div %%ecx" : : "a"(1), "d"(0), "c"(0));
	EXPECT_FAULT("a privileged instruction", SIGSEGV, 1, "cli");
	EXPECT_FAULT("a read from nowhere", SIGSEGV, 2, "mov (%%rdi), %%al" : : "D"(nowhere) : "rax");
	if (signal_address != nowhere)
		return fail("signals: the fault was at %x, the signal says %x\n", nowhere, signal_address);
	EXPECT_FAULT("a write to the kernel", SIGSEGV, 2, "mov %%al, (%%rdi)" : : "D"(0xffffffff81000000ul), "a"(0));
	return 0;
}

static int registers_come_back(void)
{
	uint64_t low[2] = { 0x1122334455667788, 0x99aabbccddeeff00 }, high[2] = { 1, 2 };
	__asm__ volatile("movdqu %[low], %%xmm0\n movdqu %[high], %%xmm15\n"
			 "syscall\n"
			 "movdqu %%xmm0, %[low]\n movdqu %%xmm15, %[high]\n"
			 : [low] "+m"(low), [high] "+m"(high)
			 : "a"(__NR_kill), "D"(sys(getpid)), "S"(SIGUSR1)
			 : "rcx", "r11", "memory");
	if (last_signal != SIGUSR1)
		return fail("signals: kill gave signal %d, not %d\n", (long)last_signal, (long)SIGUSR1);
	if (low[0] != 0x1122334455667788 || low[1] != 0x99aabbccddeeff00 || high[0] != 1 || high[1] != 2)
		return fail("signals: vector registers did not survive a handler\n");
	return 0;
}

static int blocked_signals_wait(void)
{
	unsigned long mask = 1ul << (SIGUSR2 - 1);
	int before = signals_seen;
	sys(rt_sigprocmask, SIG_BLOCK, &mask, 0, sizeof mask);
	sys(kill, sys(getpid), SIGUSR2);
	if (signals_seen != before)
		return fail("signals: a blocked signal came\n");
	sys(rt_sigprocmask, SIG_UNBLOCK, &mask, 0, sizeof mask);
	return signals_seen == before + 1 ? 0 : fail("signals: an unblocked signal did not come\n");
}

int check_signals(void)
{
	static const int numbers[] = { SIGILL, SIGTRAP, SIGFPE, SIGSEGV, SIGUSR1, SIGUSR2 };
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (on_signal(numbers[i], note, 0))
			return fail("signals: no handler for %d\n", (long)numbers[i]);
	return faults_become_signals() || registers_come_back() || blocked_signals_wait();
}

static __attribute__((noreturn)) void execute_itself(int status)
{
	char number[4] = { (char)('0' + status / 100), (char)('0' + status / 10 % 10), (char)('0' + status % 10), 0 };
	char *const arguments[] = { "check", "leave", number, 0 }, *const environment[] = { 0 };
	sys(execve, "/proc/self/exe", arguments, environment);
	leave(254);
}

static int statuses_arrive(void)
{
	long children[PROCESSES];
	for (int i = 0; i < PROCESSES; i++) {
		children[i] = sys(fork);
		if (!children[i])
			execute_itself(i + 1);
	}
	for (int i = 0; i < PROCESSES; i++) {
		int status = status_of(children[i]);
		if (status != (i + 1) << 8)
			return fail("processes: process %d ended with %x, not %x\n", (long)i, (long)status, (long)(i + 1) << 8);
	}
	return 0;
}

static int killed_processes_say_so(void)
{
	long child = sys(fork);
	if (!child)
		for (;;)
			sys(pause);
	sys(kill, child, SIGKILL);
	int status = status_of(child);
	return status == SIGKILL ? 0 : fail("processes: a killed process ended with %x\n", (long)status);
}

static int pipes_carry_everything(void)
{
	enum { LENGTH = 100000 };
	static uint8_t bytes[PAGE];
	int ends[2];
	if (sys(pipe2, ends, 0))
		return fail("processes: no pipe\n");
	long child = sys(fork);
	if (!child) {
		sys(close, ends[0]);
		for (int i = 0; i < LENGTH; i += sizeof bytes) {
			for (size_t at = 0; at < sizeof bytes; at++)
				bytes[at] = (uint8_t)((i + at) % 251);
			sys(write, ends[1], bytes, LENGTH - i < (int)sizeof bytes ? LENGTH - i : (long)sizeof bytes);
		}
		leave(0);
	}
	sys(close, ends[1]);
	int total = 0;
	for (long length; (length = sys(read, ends[0], bytes, sizeof bytes)) > 0; total += length)
		for (long at = 0; at < length; at++)
			if (bytes[at] != (total + at) % 251)
				return fail("processes: byte %d of a pipe is wrong\n", total + at);
	return status_of(child) || total != LENGTH ? fail("processes: a pipe carried %d bytes of %d\n", (long)total, (long)LENGTH) : 0;
}

int check_processes(void)
{
	return statuses_arrive() || killed_processes_say_so() || pipes_carry_everything();
}

static int pages_hold(volatile uint64_t *pages, uint64_t salt)
{
	for (uint64_t i = 0; i < PAGES; i++)
		if (pages[i * PAGE / 8] != i * 0x9e3779b97f4a7c15 + salt)
			return fail("memory: page %d holds something else\n", i);
	return 0;
}

static void fill_pages(volatile uint64_t *pages, uint64_t salt)
{
	for (uint64_t i = 0; i < PAGES; i++)
		pages[i * PAGE / 8] = i * 0x9e3779b97f4a7c15 + salt;
}

// New pages are zero, keep what is written, are copied when a child writes, and can be made read-only and taken away.
int check_memory(void)
{
	volatile uint64_t *pages = (uint64_t *)sys(mmap, 0, PAGES * PAGE, PROT_READ | PROT_WRITE,
						   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if ((unsigned long)pages > -4096ul)
		return fail("memory: mmap failed\n");
	for (int i = 0; i < PAGES * PAGE / 8; i++)
		if (pages[i])
			return fail("memory: a new page is not zero\n");
	fill_pages(pages, 1);
	long child = sys(fork);
	if (!child) {
		if (pages_hold(pages, 1))
			leave(1);
		fill_pages(pages, 2);
		leave(pages_hold(pages, 2));
	}
	if (status_of(child) || pages_hold(pages, 1))
		return fail("memory: parent and child are not apart\n");
	on_signal(SIGSEGV, note, 0);
	sys(mprotect, pages, PAGE, PROT_READ);
	EXPECT_FAULT("a write to a read-only page", SIGSEGV, 2, "mov %%al, (%%rdi)" : : "D"(pages), "a"(0));
	sys(munmap, pages, PAGES * PAGE);
	EXPECT_FAULT("a read from a page taken away", SIGSEGV, 2, "mov (%%rdi), %%al" : : "D"(pages) : "rax");
	return 0;
}

static uint64_t time_stamp(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

// The clocks advance, never go back, and agree with each other about how long a sleep was.
int check_clock(void)
{
	enum { REALTIME, MONOTONIC, RAW = 4, SLEEP = 100 };
	const struct time sleep = { 0, SLEEP * MILLISECOND };
	struct time raw_before = { 0, 0 }, raw_after = { 0, 0 }, date = { 0, 0 };
	long last = nanoseconds_since_boot();
	uint64_t last_stamp = time_stamp();
	for (int i = 0; i < 1000; i++) {
		long now = nanoseconds_since_boot();
		uint64_t stamp = time_stamp();
		if (now < last || stamp < last_stamp)
			return fail("clock: the time went back by %d ns\n", last - now);
		last = now, last_stamp = stamp;
	}
	sys(clock_gettime, RAW, &raw_before);
	long before = nanoseconds_since_boot();
	if (sys(nanosleep, &sleep, 0))
		return fail("clock: nanosleep failed\n");
	long slept = (nanoseconds_since_boot() - before) / MILLISECOND;
	sys(clock_gettime, RAW, &raw_after);
	long raw = (raw_after.seconds - raw_before.seconds) * 1000 +
		   (raw_after.nanoseconds - raw_before.nanoseconds) / MILLISECOND;
	if (slept < SLEEP || slept > LONGEST_WAIT)
		return fail("clock: a sleep of %d ms took %d ms\n", (long)SLEEP, slept);
	if (raw + 1 < slept || raw > slept + LONGEST_WAIT)
		return fail("clock: one clock says %d ms, the other %d ms\n", slept, raw);
	sys(clock_gettime, REALTIME, &date);
	say("clock: seconds since 1970: %d\n", date.seconds);
	return 0;
}

static volatile int ticks;

static void tick(int number, void *info, void *context)
{
	(void)number, (void)info, (void)context;
	ticks++;
}

// A periodic timer interrupts a computation, and a wait with a time limit ends, neither too early.
int check_timers(void)
{
	enum { TICKS = 5, PERIOD = 20, REAL = 0 };
	const long period[4] = { 0, PERIOD * 1000, 0, PERIOD * 1000 }, off[4] = { 0, 0, 0, 0 };
	on_signal(SIGALRM, tick, 0);
	long start = nanoseconds_since_boot(), took = 0;
	if (sys(setitimer, REAL, period, 0))
		return fail("timers: setitimer failed\n");
	while (ticks < TICKS && took < LONGEST_WAIT)
		took = (nanoseconds_since_boot() - start) / MILLISECOND;
	sys(setitimer, REAL, off, 0);
	// again: on a slow machine the ticks come between a reading and the look at how many they are
	took = (nanoseconds_since_boot() - start) / MILLISECOND;
	if (ticks < TICKS)
		return fail("timers: %d of %d ticks in %d ms\n", (long)ticks, (long)TICKS, took);
	if (took < (TICKS - 1) * PERIOD)
		return fail("timers: %d ticks of %d ms came within %d ms\n", (long)TICKS, (long)PERIOD, took);
	start = nanoseconds_since_boot();
	long ready = sys(poll, 0, 0, 3 * PERIOD);
	took = (nanoseconds_since_boot() - start) / MILLISECOND;
	if (ready != 0 || took < 3 * PERIOD)
		return fail("timers: poll gave %d after %d ms\n", ready, took);
	return 0;
}
