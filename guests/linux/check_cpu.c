// Checks of the processor as user space sees it: vector and floating-point state, system call instructions, processors.
#include "check.h"

#include <linux/mman.h>
#include <cpuid.h>

enum {
	VECTORS = 16,
	VECTOR_BYTES = 32,
	STATE_PROCESSES = 3,
	STATE_ROUNDS = 150,
	MOST_CPUS = 256,
	COUNTS = 100000,
};

struct state {
	uint8_t vectors[VECTORS][VECTOR_BYTES];
	uint32_t mxcsr;
	uint16_t x87_control;
	uint64_t x87_value;
} __attribute__((aligned(64)));

static int has_avx(void)
{
	unsigned a, b, c, d, low, high;
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & 6) == 6;
}

#define EACH_VECTOR(f) \
	f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define LOAD_YMM(i) "vmovdqu 32*" #i "(%[in]), %%ymm" #i "\n"
#define STORE_YMM(i) "vmovdqu %%ymm" #i ", 32*" #i "(%[out])\n"
#define LOAD_XMM(i) "movdqu 32*" #i "(%[in]), %%xmm" #i "\n"
#define STORE_XMM(i) "movdqu %%xmm" #i ", 32*" #i "(%[out])\n"

// Loads the whole state, gives the processor away, and stores what is found afterwards. One piece of assembly:
// nothing a compiler adds touches a vector register between.
#define CARRY_OVER_A_SWITCH(load, store)                                                                      \
	__asm__ volatile(EACH_VECTOR(load) "ldmxcsr %[mxcsr_in]\n fninit\n fldcw %[control_in]\n"            \
					   "fildll %[value_in]\n"                                             \
					   "syscall\n"                                                        \
					   "fistpll %[value_out]\n fnstcw %[control_out]\n"                   \
					   "stmxcsr %[mxcsr_out]\n" EACH_VECTOR(store)                        \
			 : [value_out] "=m"(after->x87_value), [control_out] "=m"(after->x87_control),        \
			   [mxcsr_out] "=m"(after->mxcsr), "+a"(number)                                       \
			 : [in] "r"(before->vectors), [out] "r"(after->vectors),                              \
			   [mxcsr_in] "m"(before->mxcsr), [control_in] "m"(before->x87_control),              \
			   [value_in] "m"(before->x87_value)                                                  \
			 : "rcx", "r11", "memory")

static void carry_over_a_switch(const struct state *before, struct state *after, int avx)
{
	long number = __NR_sched_yield;
	if (avx)
		CARRY_OVER_A_SWITCH(LOAD_YMM, STORE_YMM);
	else
		CARRY_OVER_A_SWITCH(LOAD_XMM, STORE_XMM);
}

static void fill(struct state *state, unsigned process, unsigned round, int avx)
{
	for (int vector = 0; vector < VECTORS; vector++)
		for (int byte = 0; byte < VECTOR_BYTES; byte++)
			state->vectors[vector][byte] =
				byte < 16 || avx ? (uint8_t)(process * 89 + round * 7 + vector * 16 + byte) : 0;
	// exceptions masked, a rounding mode of the process's own
	state->mxcsr = 0x1f80 | (process & 3) << 13;
	state->x87_control = (uint16_t)(0x37f | (process & 3) << 10);
	state->x87_value = 0x123456789abcd0 + process * 1000003 + round;
}

static int same_state(const struct state *before, const struct state *after, unsigned process, unsigned round)
{
	for (int vector = 0; vector < VECTORS; vector++)
		for (int byte = 0; byte < VECTOR_BYTES; byte++)
			if (before->vectors[vector][byte] != after->vectors[vector][byte])
				return fail("vectors: process %d, round %d: byte %d of register %d is %x, not %x\n", (long)process,
					    (long)round, (long)byte, (long)vector, (long)after->vectors[vector][byte],
					    (long)before->vectors[vector][byte]);
	if (before->mxcsr != (after->mxcsr & ~0x3fu))
		return fail("vectors: process %d: MXCSR is %x, not %x\n", (long)process, (long)after->mxcsr, (long)before->mxcsr);
	if (before->x87_control != after->x87_control)
		return fail("vectors: process %d: the x87 control word is %x, not %x\n", (long)process,
			    (long)after->x87_control, (long)before->x87_control);
	if (before->x87_value != after->x87_value)
		return fail("vectors: process %d: the x87 value is %x, not %x\n", (long)process, (long)after->x87_value,
			    (long)before->x87_value);
	return 0;
}

static int keep_state(unsigned process, int avx)
{
	static struct state before, after;
	for (unsigned round = 0; round < STATE_ROUNDS; round++) {
		fill(&before, process, round, avx);
		carry_over_a_switch(&before, &after, avx);
		if (same_state(&before, &after, process, round))
			return 1;
	}
	return 0;
}

// Several processes, each with values and rounding modes of its own in every register, give way to each other.
int check_vectors(void)
{
	int avx = has_avx(), bad = 0;
	long children[STATE_PROCESSES];
	for (unsigned process = 0; process < STATE_PROCESSES; process++) {
		children[process] = sys(fork);
		if (!children[process])
			leave(keep_state(process + 1, avx));
	}
	for (int process = 0; process < STATE_PROCESSES; process++)
		bad |= status_of(children[process]) != 0;
	return bad;
}

// A system call preserves every register but RAX, RCX and R11; these two hold the way back.
static int registers_survive(void)
{
	enum { KEPT = 6, RETURN_ADDRESS = KEPT, RCX, R11 };
	uint64_t after[KEPT + 3];
	__asm__ volatile("push %%rbp\n"
			 "mov $0, %%ebx\n mov $1, %%ebp\n mov $2, %%r12d\n"
			 "mov $3, %%r13d\n mov $4, %%r14d\n mov $5, %%r15d\n"
			 "syscall\n"
			 "1: mov %%rbx, 0(%[after])\n mov %%rbp, 8(%[after])\n mov %%r12, 16(%[after])\n"
			 "mov %%r13, 24(%[after])\n mov %%r14, 32(%[after])\n mov %%r15, 40(%[after])\n"
			 "lea 1b(%%rip), %%rbx\n mov %%rbx, 48(%[after])\n"
			 "mov %%rcx, 56(%[after])\n mov %%r11, 64(%[after])\n"
			 "pop %%rbp\n"
			 :
			 : "a"(__NR_getpid), [after] "D"(after)
			 : "rbx", "rcx", "r11", "r12", "r13", "r14", "r15", "memory");
	for (uint64_t i = 0; i < KEPT; i++)
		if (after[i] != i)
			return fail("syscalls: register %d of RBX, RBP, R12 to R15 became %x\n", i, after[i]);
	if (after[RCX] != after[RETURN_ADDRESS])
		return fail("syscalls: RCX is %x, not the address behind the instruction, %x\n", after[RCX], after[RETURN_ADDRESS]);
	// the interrupt flag and bit 1 are set, resume and trap flag are not
	if ((after[R11] & 0x10302) != 0x202)
		return fail("syscalls: R11 is %x, which cannot be the flags\n", after[R11]);
	return 0;
}

static int six_arguments_arrive(void)
{
	// an anonymous mapping at a wish: the one call with six arguments that all matter
	uint8_t *page = (uint8_t *)sys(mmap, 0x10000000, 8192, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (page != (uint8_t *)0x10000000)
		return fail("syscalls: mmap gave %x\n", (long)page);
	if (sys(mmap, 0, 4096, PROT_READ, MAP_PRIVATE, -1, 0) != -EBADF)
		return fail("syscalls: mmap took file descriptor -1\n");
	page[8191] = 1;
	return sys(munmap, page, 8192) ? fail("syscalls: munmap failed\n") : 0;
}

static int errors_arrive(void)
{
	if (syscall6(9999, 0, 0, 0, 0, 0, 0) != -ENOSYS)
		return fail("syscalls: number 9999 is not refused\n");
	if (syscall6(-1, 0, 0, 0, 0, 0, 0) != -ENOSYS)
		return fail("syscalls: number -1 is not refused\n");
	if (sys(write, STDOUT, 16, 8) != -EFAULT)
		return fail("syscalls: an address nobody mapped is not refused\n");
	if (sys(write, STDOUT, 0xffffffff81000000ul, 8) != -EFAULT)
		return fail("syscalls: an address of the kernel is not refused\n");
	return 0;
}

int check_syscalls(void)
{
	long own = sys(getpid);
	for (int i = 0; i < 500; i++)
		if (sys(getpid) != own)
			return fail("syscalls: getpid changed its mind\n");
	return registers_survive() || six_arguments_arrive() || errors_arrive();
}

static long call_by_int80(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

// The 32-bit system call instruction, from 64-bit code: it has numbers of its own and truncates arguments.
int check_int80(void)
{
	enum { GETPID_32 = 20, WRITE_32 = 4 };
	long own = sys(getpid);
	long answer = call_by_int80(GETPID_32, 0, 0, 0);
	if (answer != own)
		return fail("int80: getpid says %d, not %d\n", answer, own);
	if (call_by_int80(WRITE_32, STDOUT, 16, 8) != -EFAULT)
		return fail("int80: write takes an address nobody mapped\n");
	if (call_by_int80(99999, 0, 0, 0) != -ENOSYS)
		return fail("int80: number 99999 is not refused\n");
	return 0;
}

static int count_on(unsigned cpu, volatile long *counter)
{
	unsigned long mask[MOST_CPUS / 64] = { 0 };
	unsigned here = ~0u, node;
	mask[cpu / 64] = 1ul << cpu % 64;
	if (sys(sched_setaffinity, 0, sizeof mask, mask))
		return 1;
	sys(getcpu, &here, &node, 0);
	if (here != cpu)
		return fail("cpus: on processor %d, getcpu says %d\n", (long)cpu, (long)here);
	for (int i = 0; i < COUNTS; i++)
		__asm__ volatile("lock incq %0" : "+m"(*counter));
	return 0;
}

// On every processor a process counts in the same memory; no step may be lost.
int check_cpus(void)
{
	unsigned long online[MOST_CPUS / 64] = { 0 };
	long children[MOST_CPUS], processors = 0, bad = 0;
	if (sys(sched_getaffinity, 0, sizeof online, online) < 0)
		return fail("cpus: sched_getaffinity failed\n");
	long *counter = (long *)sys(mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if ((unsigned long)counter > -4096ul)
		return fail("cpus: no shared memory\n");
	for (unsigned cpu = 0; cpu < MOST_CPUS; cpu++) {
		if (!(online[cpu / 64] >> cpu % 64 & 1))
			continue;
		children[processors] = sys(fork);
		if (!children[processors++])
			leave(count_on(cpu, counter));
	}
	for (long i = 0; i < processors; i++)
		bad |= status_of(children[i]) != 0;
	say("cpus: %d\n", processors);
	if (*counter != processors * COUNTS)
		return fail("cpus: they counted to %d, not %d\n", *counter, processors * COUNTS);
	return bad;
}
