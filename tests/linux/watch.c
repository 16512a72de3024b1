// The watched work of pauses.rs: two processes write to a disk past all caches and read back what they wrote, while
// their parent looks at its clocks and tells them when it is asked.
//
//     watch: at M R by N     the answer to the Nth line on the console: two clocks, in nanoseconds, the monotonic one and
//                            the real one
//     watch: longest M R     after a line that begins with `q`: the longest times between two looks at these clocks
//     watch: steps N         then, when all that was ever written has been read once more: how many writes there were
//
// Whatever is not as it should be is told at once, by a line with `wrong` in it.
#include "watch.h"

#include "sys.h"

#include <asm/poll.h>
#include <linux/fcntl.h>
#include <linux/mman.h>

enum {
	WORKERS = 2,
	BLOCK = 16384,
	BLOCKS = 64,
	WORDS = BLOCK / sizeof(uint64_t),
	STEPS_TO_FLUSH = 8,
	REALTIME = 0,
	MONOTONIC = 1,
	CLOCKS = 2,
};

// What all processes see.
struct shared {
	volatile long stop, steps[WORKERS];
};

static uint64_t block[WORDS] __attribute__((aligned(4096)));
static long written_by[BLOCKS];

static uint64_t word(long worker, long step, long place, size_t index)
{
	return ((uint64_t)step * WORKERS + worker + 1) * 0x9e3779b97f4a7c15 + (uint64_t)place * WORDS + index;
}

static uint64_t offset_of(long worker, long place)
{
	return (uint64_t)(worker * BLOCKS + place) * BLOCK;
}

static int put(long disk, long worker, long step, long place)
{
	for (size_t i = 0; i < WORDS; i++)
		block[i] = word(worker, step, place, i);
	long result = sys(pwrite64, disk, block, BLOCK, offset_of(worker, place));
	if (result == BLOCK && step % STEPS_TO_FLUSH == 0)
		result = sys(fsync, disk) ? -EIO : BLOCK;
	written_by[place] = step;
	if (result != BLOCK)
		say("watch: wrong: worker %d cannot write block %d: %d\n", worker, place, result);
	return result == BLOCK;
}

// Whether a block holds what was written to it last.
static int is_there(long disk, long worker, long place)
{
	long step = written_by[place];
	if (!step)
		return 1;
	long result = sys(pread64, disk, block, BLOCK, offset_of(worker, place));
	for (size_t i = 0; result == BLOCK && i < WORDS; i++)
		if (block[i] != word(worker, step, place, i))
			result = -EIO;
	if (result != BLOCK)
		say("watch: wrong: worker %d does not find step %d in block %d: %d\n", worker, step, place, result);
	return result == BLOCK;
}

static int work(struct shared *shared, long worker)
{
	long disk = sys(open, "/dev/vda", O_RDWR | O_DIRECT, 0);
	if (disk < 0)
		say("watch: wrong: there is no disk: %d\n", disk);
	int good = disk >= 0;
	for (long step = 1; good && !shared->stop; step++) {
		good = put(disk, worker, step, step * 29 % BLOCKS) && is_there(disk, worker, step * 13 % BLOCKS);
		shared->steps[worker] = step;
	}
	for (long place = 0; good && place < BLOCKS; place++)
		good = is_there(disk, worker, place);
	return !good;
}

static long nanoseconds(int clock)
{
	long time[2] = { 0, 0 };
	sys(clock_gettime, clock, time);
	return time[0] * 1000000000 + time[1];
}

static void look_at_clocks(long last[CLOCKS], long longest[CLOCKS])
{
	for (int clock = 0; clock < CLOCKS; clock++) {
		long now = nanoseconds(clock), passed = now - last[clock];
		if (passed < 0)
			say("watch: wrong: clock %d went back by %d ns\n", (long)clock, -passed);
		if (passed > longest[clock])
			longest[clock] = passed;
		last[clock] = now;
	}
}

// Whether there is a line on the console, and what it begins with.
static int asked(void)
{
	struct {
		int fd;
		short events, returned;
	} console = { STDIN, POLLIN, 0 };
	char line[64] = { 0 };
	if (sys(poll, &console, 1, 0) != 1)
		return 0;
	return sys(read, STDIN, line, sizeof line) > 0 ? line[0] : 0;
}

static void answer_until_told(void)
{
	long last[CLOCKS] = { nanoseconds(REALTIME), nanoseconds(MONOTONIC) }, longest[CLOCKS] = { 0, 0 }, answers = 0;
	for (int line = 0; line != 'q'; line = asked()) {
		look_at_clocks(last, longest);
		if (line)
			say("watch: at %d %d by %d\n", last[MONOTONIC], last[REALTIME], ++answers);
	}
	say("watch: longest %d %d\n", longest[MONOTONIC], longest[REALTIME]);
}

void watch(void)
{
	sys(mkdir, "/dev", 0755);
	sys(mount, "devtmpfs", "/dev", "devtmpfs", 0, 0);
	struct shared *shared = (struct shared *)sys(mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	long children[WORKERS], steps = 0;
	for (long worker = 0; worker < WORKERS; worker++) {
		children[worker] = sys(fork);
		if (!children[worker])
			leave(work(shared, worker));
	}
	say("watch: begins\n");
	answer_until_told();
	shared->stop = 1;
	for (long worker = 0; worker < WORKERS; worker++) {
		int status = -1;
		sys(wait4, children[worker], &status, 0, 0);
		if (status)
			say("watch: wrong: worker %d ended with %x\n", worker, (long)status);
		steps += shared->steps[worker];
	}
	say("watch: steps %d\n", steps);
}
