// The write load of power_loss.rs: numbered steps, each of which changes a file system in several ways, has it flushed,
// and tells so.
//
//     /mnt/count    the number of the last step, replaced as a whole after all else of the step was flushed: all at
//                   once by sync, or file by file
//     /mnt/file-N   replaced as a whole by every step whose number is N modulo FILES; its length follows from the step
//     /mnt/log      a sector for each step, at its number modulo LOG_SECTORS, so that the file grows first
//     /mnt/pages    a page for each step, at its number modulo PAGES, written over in place
//
// Every sector (512 bytes) says by its contents which step wrote it and where it belongs: see fill. What is flushed is
// told on the console afterwards: `load: flushed N`. Whoever looks later knows from it what has to be there.
#include "load.h"

#include "sys.h"

#include <linux/fcntl.h>

enum {
	SECTOR = 512,
	PAGE = 4096,
	FILES = 32,
	LOG_SECTORS = 8192,
	PAGES = 64,
	MOST_SECTORS = 97,
};

static uint64_t content[MOST_SECTORS * SECTOR / sizeof(uint64_t)];

// As power_loss.rs computes it: the step's number, then words that follow from it and from the place.
static void fill(uint64_t step, size_t sectors)
{
	size_t words = SECTOR / sizeof *content;
	for (size_t i = 0; i < sectors * words; i++)
		content[i] = i % words ? (step + 1) * 0x9e3779b97f4a7c15 + i : step;
}

static int failed(const char *what, const char *path, long result)
{
	if (result < 0)
		say("load: cannot %s %s: error %d\n", what, path, -result);
	return result < 0;
}

// Writes the first `length` bytes of `content` to `path` at `offset`, and perhaps has them flushed.
static int put(const char *path, int flags, uint64_t offset, size_t length, int flush)
{
	long fd = sys(open, path, O_WRONLY | O_CREAT | flags, 0644);
	if (failed("open", path, fd))
		return 0;
	long written = sys(pwrite64, fd, content, length, offset);
	long flushed = flush ? sys(fsync, fd) : 0;
	sys(close, fd);
	if (written >= 0 && written != (long)length)
		written = -ENOSPC;
	return !failed("write", path, written) && !failed("flush", path, flushed);
}

// A rename is flushed with its directory.
static int flush_names(void)
{
	long directory = sys(open, "/mnt", O_RDONLY | O_DIRECTORY, 0);
	if (failed("open", "/mnt", directory))
		return 0;
	long flushed = sys(fsync, directory);
	sys(close, directory);
	return !failed("flush", "/mnt", flushed);
}

static int carry_out(uint64_t step)
{
	char name[] = "/mnt/file-00";
	size_t end = sizeof name - 1, sectors = 1 + step * 37 % (MOST_SECTORS - 1);
	int each = step % 2;
	name[end - 2] += step % FILES / 10;
	name[end - 1] += step % FILES % 10;
	fill(step, MOST_SECTORS);
	if (!put("/mnt/fresh", O_TRUNC, 0, sectors * SECTOR, each) ||
	    !put("/mnt/log", 0, step % LOG_SECTORS * SECTOR, SECTOR, each) ||
	    !put("/mnt/pages", 0, step % PAGES * PAGE, PAGE, each))
		return 0;
	if (!each)
		sys(sync);
	if (failed("rename to", name, sys(rename, "/mnt/fresh", name)))
		return 0;
	// The second rename is flushed with the first.
	return put("/mnt/next", O_TRUNC, 0, SECTOR, 1) &&
	       !failed("rename to", "/mnt/count", sys(rename, "/mnt/next", "/mnt/count")) && flush_names();
}

// The step after the last one that was counted; the first is 1.
static uint64_t next_step(void)
{
	uint64_t last = 0;
	long fd = sys(open, "/mnt/count", O_RDONLY, 0);
	if (fd == -ENOENT)
		return 1;
	if (failed("open", "/mnt/count", fd))
		return 0;
	long length = sys(read, fd, &last, sizeof last);
	sys(close, fd);
	return length == sizeof last ? last + 1 : 0;
}

void write_load(void)
{
	sys(mkdir, "/dev", 0755);
	sys(mkdir, "/mnt", 0755);
	// in an initramfs nothing is mounted; elsewhere the kernel has done it
	sys(mount, "devtmpfs", "/dev", "devtmpfs", 0, 0);
	// blocks that are free again are discarded, so that images give clusters back as well
	if (failed("mount", "/dev/vda", sys(mount, "/dev/vda", "/mnt", "ext4", 0, "discard")))
		return;
	uint64_t step = next_step();
	say("load: begins at %d\n", (long)step);
	while (step && carry_out(step))
		say("load: flushed %d\n", (long)step++);
}
