//! Words and numbers of command lines. Pure, so that the package's own tests can include it.

/// The number in `word`: decimal, or hexadecimal behind `0x`; underscores may separate digits.
pub fn number(word: &str) -> Option<u64> {
    let (digits, base) = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    let mut value: Option<u64> = None;
    for digit in digits.chars().filter(|&digit| digit != '_') {
        let so_far = value.unwrap_or(0);
        value = Some(so_far.checked_mul(base.into())?.checked_add(digit.to_digit(base)?.into())?);
    }
    value
}

/// The first word of `text`, and the rest without the blanks around it.
pub fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_ascii();
    match text.find([' ', '\t']) {
        Some(end) => (&text[..end], text[end..].trim_ascii()),
        None => (text, ""),
    }
}

/// What the kernel command line asks of this guest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes<'a> {
    /// No report of the machine.
    pub quiet: bool,
    /// Commands to carry out before the prompt, separated by semicolons.
    pub run: &'a str,
}

/// Reads the kernel command line: words, of which `quiet` and `run=…` are ours. Commands contain blanks, so `run=`
/// reaches to the end of the line, or from one quote to the next.
pub fn wishes(command_line: &str) -> Wishes<'_> {
    let mut wishes = Wishes::default();
    let mut rest = command_line.trim_ascii();
    while !rest.is_empty() {
        if let Some(commands) = rest.strip_prefix("run=") {
            let quoted = commands.strip_prefix('"').and_then(|commands| commands.split_once('"'));
            let (commands, behind) = quoted.unwrap_or((commands, ""));
            wishes.run = commands;
            rest = behind.trim_ascii();
            continue;
        }
        let (word, behind) = split_word(rest);
        wishes.quiet |= word == "quiet";
        rest = behind;
    }
    wishes
}

/// Where the registers of virtio devices are, and their interrupts, as `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT` says
/// (Linux' Documentation/admin-guide/kernel-parameters.txt).
pub fn virtio_words(command_line: &str) -> impl Iterator<Item = (u64, Option<u64>)> {
    let words = command_line.split_ascii_whitespace();
    words.filter_map(|word| {
        let (_, place) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
        let mut parts = place.split(':');
        Some((number(parts.next()?)?, parts.next().and_then(number)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("1_000"), Some(1000));
        assert_eq!(number("0xfee0_0030"), Some(0xfee0_0030));
        assert_eq!(number("0xffffffffffffffff"), Some(u64::MAX));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for word in ["", "0x", "_", "ten", "1a", "-1", "18446744073709551616", "0x10000000000000000"] {
            assert_eq!(number(word), None, "{word}");
        }
    }

    #[test]
    fn words_are_split_at_blanks() {
        assert_eq!(split_word("  poke \t 0x10  5 "), ("poke", "0x10  5"));
        assert_eq!(split_word("help"), ("help", ""));
        assert_eq!(split_word("   "), ("", ""));
    }

    #[test]
    fn commands_to_run_reach_to_the_end_of_the_line() {
        let wishes = wishes("console=ttyS0 quiet run=burst 100000; exit 7");
        assert_eq!(wishes, Wishes { quiet: true, run: "burst 100000; exit 7" });
    }

    #[test]
    fn quoted_commands_end_at_the_quote() {
        let wishes = wishes("run=\"echo quiet;mem\" quiet");
        assert_eq!(wishes, Wishes { quiet: true, run: "echo quiet;mem" });
    }

    #[test]
    fn words_that_only_contain_ours_are_not_ours() {
        assert_eq!(wishes("notquiet xrun=halt"), Wishes::default());
    }

    #[test]
    fn devices_are_where_the_words_of_the_command_line_say() {
        let line = "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@0xfeb00e00:12:7 \
                    virtio_mmio.device=4K virtio_mmio.device=4K@0xd0001000";
        let found: Vec<_> = virtio_words(line).collect();
        assert_eq!(found, [(0xd000_0000, Some(5)), (0xfeb0_0e00, Some(12)), (0xd000_1000, None)]);
    }
}
