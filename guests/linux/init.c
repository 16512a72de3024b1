// The test guest's first process: says at once that user space is reached, mounts the usual file systems, then runs the
// script from the kernel's command line or a shell, and powers the machine off when that has ended.
//
//     lodger.run="uname -a; check vectors"   is run by busybox sh; a status other than 0 ends lodger with it (port 0xf4)
//     without it                             an interactive shell with job control on the console
//
// Before the shell is executed nothing of busybox is touched, so that the first line does not wait for it.
#include "sys.h"

#include <asm/ioctls.h>
#include <asm/signal.h>
#include <asm/termbits.h>
#include <linux/fcntl.h>
#include <linux/input-event-codes.h>
#include <linux/reboot.h>
#include <linux/wait.h>

PROGRAM_ENTRY

// The line that boot-time measurements wait for.
#define FIRST_LINE "init: user space reached\n"

#define BUSYBOX "/bin/busybox"

enum {
	MODEM_CARRIER = 0x40,
	// lodger ends with the status that is written there
	DEBUG_EXIT_PORT = 0xf4,
	WATCH_MILLISECONDS = 200,
};

struct window_size {
	unsigned short rows, columns, width, height;
};

// What /dev/input/event* tells, as programs of 64 bits see it.
struct input_event {
	long seconds, microseconds;
	unsigned short type, code;
	int value;
};

struct pause {
	long seconds, nanoseconds;
};

static char command_line[4096];
static volatile int wanted_command;

// What busybox's poweroff, halt and reboot send to process 1.
static void on_request(int number, void *info, void *context)
{
	(void)info, (void)context;
	wanted_command = number == SIGTERM ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF;
}

static void mount(const char *kind, const char *where)
{
	sys(mkdir, where, 0755);
	long error = sys(mount, kind, where, kind, 0, 0);
	if (error && error != -EBUSY)
		say("init: cannot mount %s on %s: error %d\n", kind, where, -error);
}

static long read_file(const char *path, char *into, size_t size)
{
	long fd = sys(open, path, O_RDONLY, 0);
	if (fd < 0)
		return fd;
	long length = sys(read, fd, into, size - 1);
	sys(close, fd);
	into[length > 0 ? length : 0] = 0;
	return length;
}

// The text of lodger.run="…" or lodger.run=WORD. (Words after `--` reach this program as well, but at most 32, and
// without their quotes; of a parameter with a dot in its name the kernel takes no notice.)
static char *script_from_command_line(void)
{
	static const char name[] = " lodger.run=";
	long length = read_file("/proc/cmdline", command_line + 1, sizeof command_line - 1);
	command_line[0] = ' ';
	for (char *text = command_line; length > 0 && *text; text++) {
		if (!starts_with(text, name))
			continue;
		char *script = text + sizeof name - 1;
		char last = *script == '"' ? '"' : ' ';
		script += last == '"';
		for (text = script; *text && *text != last && *text != '\n'; text++)
			;
		*text = 0;
		return script;
	}
	return 0;
}

static __attribute__((noreturn)) void end(int command)
{
	sys(kill, -1, SIGTERM);
	sys(sync);
	sys(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, 0);
	say("init: the kernel cannot do that; halting\n");
	sys(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_HALT, 0);
	for (;;)
		sys(pause);
}

static void tell_host(int status)
{
	if (sys(ioperm, DEBUG_EXIT_PORT, 1, 1) == 0)
		__asm__ volatile("outb %b0, %w1" : : "a"(status), "Nd"((unsigned short)DEBUG_EXIT_PORT));
}

// /dev/console cannot be a controlling terminal: without the device behind it a shell has no job control.
static long open_terminal(void)
{
	char path[64] = "/dev/", names[48];
	long length = read_file("/sys/class/tty/console/active", names, sizeof names);
	long start = 0;
	for (long i = 0; i < length; i++) {
		if (names[i] == ' ')
			start = i + 1;
		if (names[i] == '\n')
			names[i] = 0;
	}
	if (length <= 0)
		return sys(open, "/dev/console", O_RDWR, 0);
	for (size_t i = 0; start <= length; i++, start++)
		path[5 + i] = names[start];
	return sys(open, path, O_RDWR, 0);
}

// The host's terminal size, when the command line has LINES= and COLUMNS= (the kernel makes them environment).
static void set_window_size(long terminal, char **environment)
{
	struct window_size size = { 0 };
	for (; *environment; environment++) {
		if (starts_with(*environment, "LINES="))
			size.rows = (unsigned short)parse_number(*environment + 6, 0);
		if (starts_with(*environment, "COLUMNS="))
			size.columns = (unsigned short)parse_number(*environment + 8, 0);
	}
	if (size.rows && size.columns)
		sys(ioctl, terminal, TIOCSWINSZ, &size);
}

static long start(char *const *arguments, char **environment, long terminal)
{
	long child = sys(fork);
	if (child)
		return child;
	sys(setsid);
	sys(ioctl, terminal, TIOCSCTTY, 0);
	for (int fd = STDIN; fd <= STDERR; fd++)
		sys(dup2, terminal, fd);
	if (terminal > STDERR)
		sys(close, terminal);
	sys(execve, BUSYBOX, arguments, environment);
	say("init: there is no %s in this initramfs\n", BUSYBOX);
	leave(127);
}

// Whether the host's end of the serial line has gone and everything it sent was read.
static int input_has_ended(long terminal)
{
	int modem = 0, waiting = 0;
	return sys(ioctl, terminal, TIOCMGET, &modem) == 0 && !(modem & MODEM_CARRIER) &&
	       sys(ioctl, terminal, FIONREAD, &waiting) == 0 && !waiting;
}

// A serial line has no end of file. lodger drops the carrier where its input ends; what a shell understands is Ctrl-D.
// Seen twice in a row, so that bytes still on their way to the terminal's buffer are not overtaken.
static void pass_end_of_input(long terminal, int *seen)
{
	*seen = input_has_ended(terminal) ? *seen + 1 : 0;
	if (*seen >= 2)
		sys(ioctl, terminal, TIOCSTI, "\004");
}

// Whether the host has pressed the power button, which is the only input device that there is.
static int button_was_pressed(long button)
{
	struct input_event event;
	while (button >= 0 && sys(read, button, &event, sizeof event) == sizeof event)
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value)
			return 1;
	return 0;
}

// Waits for the child, buries orphans meanwhile, and gives its exit status as a shell would.
static int wait_for(long child, long terminal)
{
	const struct pause watch_interval = { 0, WATCH_MILLISECONDS * 1000000L };
	const long button = sys(open, "/dev/input/event0", O_RDONLY | O_NONBLOCK, 0);
	int seen = 0;
	for (;;) {
		int status = 0;
		long dead = sys(wait4, -1, &status, WNOHANG, 0);
		if (dead == child)
			return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
		if (wanted_command)
			end(wanted_command);
		if (button_was_pressed(button)) {
			say("init: the power button was pressed\n");
			end(LINUX_REBOOT_CMD_POWER_OFF);
		}
		if (dead > 0)
			continue;
		pass_end_of_input(terminal, &seen);
		// SIGCHLD and the requests end this sleep early
		sys(nanosleep, &watch_interval, 0);
	}
}

static void ignore(int number, void *info, void *context)
{
	(void)number, (void)info, (void)context;
}

int run(int count, char **arguments, char **environment)
{
	(void)count, (void)arguments;
	sys(write, STDOUT, FIRST_LINE, sizeof FIRST_LINE - 1);
	mount("proc", "/proc");
	mount("sysfs", "/sys");
	mount("devtmpfs", "/dev");
	mount("devpts", "/dev/pts");
	mount("tmpfs", "/tmp");
	on_signal(SIGCHLD, ignore, 0);
	on_signal(SIGTERM, on_request, 0);
	on_signal(SIGUSR1, on_request, 0);
	on_signal(SIGUSR2, on_request, 0);

	long terminal = open_terminal();
	set_window_size(terminal, environment);
	char *script = script_from_command_line();
	char *const script_arguments[] = { "sh", "-c", script, 0 };
	char *const shell_arguments[] = { "-sh", 0 };
	long child = start(script ? script_arguments : shell_arguments, environment, terminal);
	int status = wait_for(child, terminal);
	if (script) {
		say("init: the script ended with status %d\n", (long)status);
		if (status) {
			sys(ioctl, terminal, TCSBRK, 1);
			tell_host(status);
		}
	} else {
		say("init: the shell has ended\n");
	}
	end(LINUX_REBOOT_CMD_POWER_OFF);
}
