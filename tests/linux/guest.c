// The tests' own first process: carries out the words behind `--` on the kernel's command line, one after another.
//
//     show:FILE          prints `<FILE`, what it holds, and `>`
//     log                prints `<log`, the kernel's messages, and `>`
//     random             prints `random: ` and 16 bytes in hexadecimal
//     run:PROGRAM:WORD   runs it with one argument (or none) and prints `PROGRAM WORD: status N`
//     reboot, poweroff, halt
//     load               writes to /dev/vda until it is killed: see load.c
//     watch              works on /dev/vda and looks at its clocks, until it is told to end: see watch.c
//     panic              ends this process, which no kernel survives
//     exit:N             ends lodger with status N, through the debug-exit port
//
// Without a shell a test pays for nothing but what it asks for: where the guest's kernel is interpreted, each process
// takes a noticeable part of a second.
#include "load.h"
#include "sys.h"
#include "watch.h"

#include <asm/ioctls.h>
#include <linux/fcntl.h>
#include <linux/reboot.h>

PROGRAM_ENTRY

enum {
	DEBUG_EXIT_PORT = 0xf4,
	READ_WHOLE_LOG = 3,
};

static char text[1 << 16];

static void print(const char *start, long length)
{
	while (length > 0) {
		long written = sys(write, STDOUT, start, length);
		if (written <= 0)
			return;
		start += written;
		length -= written;
	}
}

static void print_text(const char *name, long length)
{
	say("<%s\n", name);
	if (length < 0)
		say("error %d", -length);
	print(text, length);
	say("\n>\n");
}

static void show(const char *path)
{
	long length = 0, more, fd = sys(open, path, O_RDONLY, 0);
	if (fd < 0)
		return print_text(path, fd);
	while ((more = sys(read, fd, text + length, sizeof text - length)) > 0)
		length += more;
	sys(close, fd);
	print_text(path, length);
}

static void show_random(void)
{
	uint8_t bytes[16] = { 0 };
	struct line line = { .length = 0 };
	sys(getrandom, bytes, sizeof bytes, 0);
	for (size_t i = 0; i < sizeof bytes; i++) {
		line_number(&line, bytes[i] >> 4, 16, 0);
		line_number(&line, bytes[i] & 15, 16, 0);
	}
	line_character(&line, '\n');
	say("random: ");
	print(line.text, (long)line.length);
}

static void run_program(char *program, char **environment)
{
	char *argument = program;
	while (*argument && *argument != ':')
		argument++;
	if (*argument)
		*argument++ = 0;
	char *const arguments[] = { program, *argument ? argument : 0, 0 };
	long child = sys(fork);
	if (!child) {
		sys(execve, program, arguments, environment);
		say("there is no %s\n", program);
		leave(127);
	}
	int status = 0;
	sys(wait4, child, &status, 0, 0);
	say("%s %s: status %d\n", program, argument, (long)(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff));
}

static void end(int command)
{
	sys(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, 0);
	say("the kernel cannot do that\n");
}

static void leave_lodger(long status)
{
	if (sys(ioperm, DEBUG_EXIT_PORT, 1, 1) == 0)
		__asm__ volatile("outb %b0, %w1" : : "a"((int)status), "Nd"((unsigned short)DEBUG_EXIT_PORT));
}

static void carry_out(char *word, char **environment)
{
	// what was printed so far has left the serial port
	sys(ioctl, STDOUT, TCSBRK, 1);
	if (starts_with(word, "show:"))
		show(word + 5);
	else if (same_text(word, "log"))
		print_text(word, sys(syslog, READ_WHOLE_LOG, text, sizeof text));
	else if (same_text(word, "random"))
		show_random();
	else if (starts_with(word, "run:"))
		run_program(word + 4, environment);
	else if (same_text(word, "reboot"))
		end(LINUX_REBOOT_CMD_RESTART);
	else if (same_text(word, "poweroff"))
		end(LINUX_REBOOT_CMD_POWER_OFF);
	else if (same_text(word, "halt"))
		end(LINUX_REBOOT_CMD_HALT);
	else if (same_text(word, "load"))
		write_load();
	else if (same_text(word, "watch"))
		watch();
	else if (same_text(word, "panic"))
		leave(1);
	else if (starts_with(word, "exit:"))
		leave_lodger(parse_number(word + 5, 98));
	else
		say("what is %s?\n", word);
}

int run(int count, char **arguments, char **environment)
{
	sys(mkdir, "/proc", 0755);
	sys(mkdir, "/sys", 0755);
	sys(mount, "proc", "/proc", "proc", 0, 0);
	sys(mount, "sysfs", "/sys", "sysfs", 0, 0);
	say("tests: user space reached\n");
	for (int i = 1; i < count; i++)
		carry_out(arguments[i], environment);
	leave_lodger(99);
	return 0;
}
