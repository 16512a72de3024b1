//! The kernel's command line: what it is made of and how long it may be.

use super::{Error, Options, map};

/// What Linux is told if nobody says otherwise: use the serial port; reset through the keyboard controller, which
/// every kernel can; and reset after a panic instead of waiting for ever. Each of the last two ends the process.
pub const LINUX_DEFAULT: &str = "console=ttyS0 reboot=k panic=-1";
/// The same if there is a virtio console. Until that is there the serial port shows what is printed, as a boot console,
/// which the other one relieves: Linux 6.1 does not show on a virtio console what it printed before it found it. As a
/// second console the serial port would print all that follows as well.
pub const LINUX_DEFAULT_VIRTIO: &str = "earlycon=uart8250,io,0x3f8 console=hvc0 reboot=k panic=-1";

/// The command line for a kernel which takes no longer one than `longest`, if it says so; `devices` are added to it.
pub(super) fn compose(
    is_linux: bool,
    longest: Option<u32>,
    options: &Options<'_>,
    devices: &[String],
) -> Result<String, Error> {
    let line = match options.command_line {
        None if is_linux && options.virtio_console => join(LINUX_DEFAULT_VIRTIO, options.append),
        None if is_linux => join(LINUX_DEFAULT, options.append),
        _ => given(options),
    };
    let (of_kernel, of_init) = line.split_at(end_of_parameters(&line));
    let line = join(join(of_kernel.trim_end(), devices).as_str(), &[of_init.to_owned()]);
    check(&line, longest)?;
    Ok(line)
}

/// Where the kernel's own parameters end: at the word `--`, as what follows goes to the first process (Linux,
/// `parse_args` in kernel/params.c).
fn end_of_parameters(line: &str) -> usize {
    let mut quoted = false;
    let mut start = 0;
    for (at, byte) in line.bytes().chain([b' ']).enumerate() {
        quoted ^= byte == b'"';
        if byte.is_ascii_whitespace() && !quoted {
            if &line[start..at] == "--" {
                return start;
            }
            start = at + 1;
        }
    }
    line.len()
}

/// What was given of it, without any default.
pub(super) fn given(options: &Options<'_>) -> String {
    join(options.command_line.unwrap_or_default(), options.append)
}

fn join(first: &str, others: &[String]) -> String {
    let parts = std::iter::once(first).chain(others.iter().map(String::as_str));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn check(line: &str, longest: Option<u32>) -> Result<(), Error> {
    let room = map::COMMAND_LINE_ROOM as usize - 1;
    let kernel = longest.map_or(room, |longest| longest as usize);
    let most = room.min(kernel);
    if line.len() > most {
        return Err(Error::CommandLineTooLong { length: line.len(), most, own: kernel < room });
    }
    match line.bytes().position(|byte| byte == 0) {
        Some(at) => Err(Error::CommandLineZero { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(command_line: Option<&str>, append: &[&str], is_linux: bool) -> String {
        with_limit(None, command_line, append, is_linux).unwrap()
    }

    fn with_limit(
        longest: Option<u32>,
        command_line: Option<&str>,
        append: &[&str],
        is_linux: bool,
    ) -> Result<String, String> {
        let append: Vec<_> = append.iter().map(|part| part.to_string()).collect();
        let options = Options { command_line, append: &append, ..Options::default() };
        compose(is_linux, longest, &options, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn linux_has_a_default_and_others_have_none() {
        assert_eq!(line(None, &[], true), LINUX_DEFAULT);
        assert_eq!(line(None, &[], false), "");
        assert_eq!(line(Some(""), &[], true), "");
        assert_eq!(line(Some("quiet"), &[], true), "quiet");
    }

    #[test]
    fn a_virtio_console_takes_the_place_of_the_serial_port() {
        let append = ["quiet".to_owned()];
        let options = Options { append: &append, virtio_console: true, ..Options::default() };
        let line = |options: &Options<'_>, is_linux| compose(is_linux, None, options, &[]).unwrap();
        assert_eq!(line(&options, true), "earlycon=uart8250,io,0x3f8 console=hvc0 reboot=k panic=-1 quiet");
        assert_eq!(line(&options, false), "quiet");
        assert_eq!(line(&Options { command_line: Some("a"), ..options }, true), "a quiet");
    }

    #[test]
    fn parts_are_added_with_one_space_between() {
        let more = ["quiet", "", "root=/dev/vda"];
        assert_eq!(line(None, &more, true), "console=ttyS0 reboot=k panic=-1 quiet root=/dev/vda");
        assert_eq!(line(None, &more, false), "quiet root=/dev/vda");
        assert_eq!(line(Some("a"), &more, true), "a quiet root=/dev/vda");
    }

    #[test]
    fn devices_are_told_to_the_kernel_and_not_to_its_first_process() {
        let devices = ["x.device=1".to_owned()];
        for (given, expected) in [
            ("", "x.device=1"),
            ("quiet", "quiet x.device=1"),
            ("quiet -- a b", "quiet x.device=1 -- a b"),
            ("quiet --", "quiet x.device=1 --"),
            ("-- a -- b", "x.device=1 -- a -- b"),
            ("a=-- --b c--", "a=-- --b c-- x.device=1"),
            ("a=\"x -- y\" -- z", "a=\"x -- y\" x.device=1 -- z"),
            ("a=\"x -- y", "a=\"x -- y x.device=1"),
            ("ä -- ü", "ä x.device=1 -- ü"),
        ] {
            let options = Options { command_line: Some(given), ..Options::default() };
            assert_eq!(compose(true, None, &options, &devices).unwrap(), expected);
        }
    }

    #[test]
    fn the_kernels_limit_and_the_room_bound_it_whichever_is_less() {
        let (short, long) = ("x".repeat(255), "x".repeat(2047));
        let limited = |longest, line: &str, append: &[&str]| with_limit(longest, Some(line), append, true);
        assert_eq!(limited(Some(255), &short, &[]).as_ref(), Ok(&short));
        assert_eq!(
            limited(Some(255), &short, &["y"]),
            Err("the command line has 257 bytes, this kernel takes at most 255".to_owned())
        );
        for longest in [None, Some(2047), Some(u32::MAX)] {
            assert_eq!(limited(longest, &long, &[]).as_ref(), Ok(&long));
            assert_eq!(
                limited(longest, &long, &["y"]),
                Err("the command line has 2049 bytes, a kernel takes at most 2047".to_owned())
            );
        }
        // Defaults count as well.
        assert!(with_limit(Some(10), None, &[], true).is_err());
    }

    #[test]
    fn a_zero_is_found_wherever_it_stands() {
        let said = with_limit(None, Some("ab"), &["c\0d"], true).unwrap_err();
        assert_eq!(said, "the command line has a zero byte at position 4");
    }
}
