// What the test guest's programs need instead of a C library: the entry, system calls, text on a file descriptor.
//
// Static programs of a few kilobytes reach user space sooner than megabytes of C library, which matters where a guest
// kernel is interpreted; and with no library in between, a test knows which instructions run.
#ifndef SYS_H
#define SYS_H

#include <asm/unistd.h>
#include <linux/errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

enum { STDIN, STDOUT, STDERR };

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

// sys(NR_…, up to six arguments): a system call whose arguments may be integers or pointers.
#define sys(...) SYS_PICK(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define SYS_PICK(n, a, b, c, d, e, f, ...) \
	syscall6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline size_t text_length(const char *text)
{
	size_t length = 0;
	while (text[length])
		length++;
	return length;
}

static inline int same_text(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static inline int starts_with(const char *text, const char *start)
{
	while (*start && *text == *start)
		text++, start++;
	return !*start;
}

// A decimal number, or `otherwise` where the text is none.
static inline long parse_number(const char *text, long otherwise)
{
	long value = 0;
	if (!text || !*text)
		return otherwise;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || value > 1000000000)
			return otherwise;
		value = value * 10 + (*text - '0');
	}
	return value;
}

struct line {
	char text[256];
	size_t length;
};

static inline void line_character(struct line *line, char character)
{
	if (line->length < sizeof line->text)
		line->text[line->length++] = character;
}

static inline void line_number(struct line *line, unsigned long value, unsigned base, int negative)
{
	char digits[24];
	int count = 0;
	do
		digits[count++] = "0123456789abcdef"[value % base];
	while (value /= base);
	if (negative)
		line_character(line, '-');
	while (count)
		line_character(line, digits[--count]);
}

// Writes a line in one system call, so that lines of several processes do not mix. %s text, %d long, %x long in hex.
static void say_list(int fd, const char *format, va_list arguments)
{
	struct line line = { .length = 0 };
	for (; *format; format++) {
		if (*format != '%') {
			line_character(&line, *format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *text = va_arg(arguments, const char *); *text; text++)
				line_character(&line, *text);
			break;
		case 'd': {
			long value = va_arg(arguments, long);
			line_number(&line, value < 0 ? -(unsigned long)value : (unsigned long)value, 10, value < 0);
			break;
		}
		case 'x':
			line_number(&line, va_arg(arguments, unsigned long), 16, 0);
			break;
		default:
			line_character(&line, *format);
		}
	}
	sys(write, fd, line.text, line.length);
}

static inline __attribute__((unused)) void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say_list(STDOUT, format, arguments);
	va_end(arguments);
}

static inline __attribute__((noreturn, unused)) void leave(int status)
{
	for (;;)
		sys(exit_group, status);
}

// The kernel's struct sigaction and its return trampoline, which a C library would hide.
struct signal_action {
	void (*handler)(int, void *, void *);
	unsigned long flags;
	void (*restorer)(void);
	unsigned long mask;
};

enum { WITH_INFO = 4, WITH_RESTORER = 0x04000000, ON_STACK = 0x08000000, NO_DEFER = 0x40000000 };

void return_from_signal(void);

static inline __attribute__((unused)) long on_signal(int number, void (*handler)(int, void *, void *), unsigned long flags)
{
	struct signal_action action = {
		.handler = handler,
		.flags = flags | WITH_INFO | WITH_RESTORER,
		.restorer = return_from_signal,
	};
	return sys(rt_sigaction, number, &action, 0, sizeof action.mask);
}

// In one source file of each program: where the kernel enters it, and what a compiler calls on its own.
#define PROGRAM_ENTRY                                                                                   \
	__asm__(".globl _start, return_from_signal\n"                                                   \
		"_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call enter\n hlt\n"       \
		"return_from_signal:\n mov $15, %eax\n syscall\n");                                     \
	int run(int count, char **arguments, char **environment);                                       \
	__attribute__((noreturn, used)) void enter(long *stack)                                         \
	{                                                                                               \
		char **arguments = (char **)(stack + 1);                                                \
		leave(run((int)stack[0], arguments, arguments + stack[0] + 1));                         \
	}                                                                                               \
	__attribute__((used)) void *memset(void *to, int value, size_t count)                           \
	{                                                                                               \
		void *start = to;                                                                       \
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");          \
		return start;                                                                           \
	}                                                                                               \
	__attribute__((used)) void *memcpy(void *to, const void *from, size_t count)                    \
	{                                                                                               \
		void *start = to;                                                                       \
		__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");         \
		return start;                                                                           \
	}

#endif
