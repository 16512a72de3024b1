//! The commands of the prompt: one table, which `help` prints too.

mod access;
mod ending;
mod looking;
mod measuring;
mod virtio;

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::machine::Machine;
use crate::parse::split_word;
use crate::println;
use crate::traps::guarded;

/// Why a command was not carried out; the prompt shows it.
enum Refusal {
    /// The words behind the command make no sense; its usage is shown.
    Usage,
    /// Said already.
    Told,
}

type Outcome = Result<(), Refusal>;

/// Whether the last command was not carried out.
static LAST_FAILED: AtomicBool = AtomicBool::new(false);

struct Command {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: fn(&Machine, &str) -> Outcome,
}

const fn command(
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: fn(&Machine, &str) -> Outcome,
) -> Command {
    Command { name, usage, help, run }
}

static COMMANDS: &[Command] = &[
    command("help", "", "this list", help),
    command("mem", "", "the memory map", looking::memory),
    command("touch", "[MIB]", "write and verify free memory, all of it or so many MiB", measuring::touch),
    command("cpu", "", "the processors; starts the others for a moment", looking::processor),
    command("devices", "", "timers, interrupt controllers, legacy devices", looking::devices),
    command(
        "virtio",
        "[test [own|long]]",
        "the virtio devices; tests of them, which overwrite disks",
        virtio::virtio,
    ),
    command(
        "disk",
        "read|write BYTES DEPTH TIMES [seq]",
        "measure the first disk, at random places if not said",
        virtio::disk,
    ),
    command("time", "", "date and time of the CMOS clock", looking::time),
    command("cmdline", "", "the kernel command line", looking::command_line),
    command("exits", "", "measure what leaving the guest costs", measuring::exits),
    command("timer", "", "count timer interrupts for a quarter of a second", measuring::timer),
    command("ring0", "", "compare the speed of ring 0 and ring 3", measuring::ring0),
    command("burst", "BYTES", "print so many bytes as fast as possible", measuring::burst),
    command(
        "count",
        "[MILLISECONDS]",
        "print 1, 2, 3 and so on to the end, every 10 ms if not said",
        measuring::count,
    ),
    command("peek", "ADDRESS [COUNT]", "show bytes of memory", access::peek),
    command("poke", "ADDRESS VALUE [1|2|4|8]", "write memory, four bytes at once if not said", access::poke),
    command("in", "PORT [1|2|4]", "read a port", access::port_in),
    command("out", "PORT VALUE [1|2|4]", "write a port", access::port_out),
    command("msr", "NUMBER", "read a model-specific register", access::msr),
    command("cpuid", "LEAF [SUBLEAF]", "ask CPUID in ring 0", access::cpuid),
    command("post", "CODE", "write a progress code to port 0x80", access::post),
    command("echo", "TEXT", "print text", looking::echo),
    command(
        "crash",
        "[triple|ud|fault|halt|loop]",
        "bring the machine down, triple if not said",
        ending::crash,
    ),
    command(
        "exit",
        "[STATUS]",
        "end with a status through port 0xf4, 1 or 0 by the last command",
        ending::exit,
    ),
    command("halt", "", "end with status 0", ending::halt),
    command("reboot", "", "reset by the keyboard controller", ending::reboot),
];

struct Usage<'a>(&'a Command);

impl fmt::Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Command { name, usage, .. } = self.0;
        match usage.is_empty() {
            true => write!(f, "{name} (alone)"),
            false => write!(f, "{name} {usage}"),
        }
    }
}

/// Carries out one line.
pub fn run(machine: &Machine, line: &str) {
    let (name, arguments) = split_word(line);
    if name.is_empty() {
        return;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        println!("there is no command {name}; help lists what there is");
        LAST_FAILED.store(true, Ordering::Relaxed);
        return;
    };
    let outcome = guarded(|| (command.run)(machine, arguments));
    LAST_FAILED.store(!matches!(outcome, Ok(Ok(()))), Ordering::Relaxed);
    match outcome {
        Ok(Ok(()) | Err(Refusal::Told)) => {}
        Ok(Err(Refusal::Usage)) => println!("usage: {}", Usage(command)),
        Err(fault) => fault.report(),
    }
}

fn help(_: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    for Command { name, usage, help, .. } in COMMANDS {
        println!("  {name:<8}{usage:<28} {help}");
    }
    println!(
        "Numbers are decimal, or hexadecimal behind 0x. Ctrl-U empties the line, the up key brings back the last."
    );
    Ok(())
}

/// The next argument, which must be a number.
fn number(arguments: &mut &str) -> Result<u64, Refusal> {
    let (word, rest) = split_word(arguments);
    *arguments = rest;
    crate::parse::number(word).ok_or(Refusal::Usage)
}

/// The next argument, a number if there is one.
fn number_or(arguments: &mut &str, default: u64) -> Result<u64, Refusal> {
    if arguments.is_empty() { Ok(default) } else { number(arguments) }
}

/// 1 if the last command was not carried out.
fn last_status() -> u8 {
    LAST_FAILED.load(Ordering::Relaxed).into()
}

/// The next argument as a number of `T`'s size; without a default it must be there.
fn narrow<T: TryFrom<u64>>(arguments: &mut &str) -> Result<T, Refusal> {
    number(arguments)?.try_into().map_err(|_| Refusal::Usage)
}

/// All arguments have been used.
fn nothing_more(arguments: &str) -> Outcome {
    if arguments.is_empty() { Ok(()) } else { Err(Refusal::Usage) }
}
