//! `lodger doctor`: what this host can do for guests, as a table for people or as JSON for programs.
//!
//! Everything is found out by [`lodger::host`]; here it is only shown.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use lodger::host::{self, Area, Report, Row, Verdict};

use super::say::{say, shown};

/// Say what this host can do: KVM and its capabilities, what guests cannot do on it, memory, devices
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct DoctorArgs {
    /// Print the findings as one JSON object
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Marks: ok = there; + = KVM lacks it, lodger does it in its place; ! = limited, or missing and needed; — = missing, but guests run without; ? = not examined.

JSON: {\"can-run\": BOOL, \"rows\": [ROW…]}, each ROW with
  area      kvm, capability, guest, instruction, processor, memory, network, storage or isolation
  name      what was looked at; does not change from version to version
  verdict   ok, covered, limited, missing or not-examined
  detail    what was found, in words
  advice    what can be done about it, in words, or null
  required  whether no guest can run without it

Exit status: 0 if a guest can run here, 1 if not.

Examples:
  lodger doctor
  lodger doctor --json | jq -r '.rows[] | select(.verdict != \"ok\") | .name'";

/// Lines of advice are broken before this column.
const WIDTH: usize = 110;
/// Where details begin.
const NAME_WIDTH: usize = 32;
const ADVICE_INDENT: usize = 8;

/// Examines the host and prints what it found; the status says whether a guest can run.
pub fn doctor(args: &DoctorArgs) -> ExitCode {
    let report = host::examine();
    match shown("the findings", print(&report, args.json)) {
        // If standard error is gone too, the status has to say it alone.
        Err(error) => {
            say!("lodger: {error}");
            ExitCode::FAILURE
        }
        _ if report.can_run => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn print(report: &Report, as_json: bool) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let text = if as_json {
        json(report)?
    } else {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        render(report, output.is_terminal() && !unwanted)
    };
    output.write_all(text.as_bytes())?;
    output.flush()
}

fn json(report: &Report) -> io::Result<String> {
    Ok(serde_json::to_string(report)? + "\n")
}

fn render(report: &Report, colours: bool) -> String {
    let paint = Paint { colours };
    let mut text = String::new();
    for rows in report.rows.chunk_by(|one, next| one.area == next.area) {
        text += &paint.bold(title(rows[0].area));
        text.push('\n');
        // Neighbours with the same advice share it.
        for same in rows.chunk_by(|one, next| one.advice == next.advice) {
            same.chunk_by(alike).for_each(|rows| text += &line(rows, &paint));
            if let Some(advice) = &same[0].advice {
                text += &paint.dim(&indent(advice));
            }
        }
        text.push('\n');
    }
    text + &closing(report) + "\n"
}

fn title(area: Area) -> &'static str {
    match area {
        Area::Kvm => "KVM",
        Area::Capability => "KVM's capabilities",
        Area::Guest => "Guests",
        Area::Instruction => "What guest kernels can do on this KVM",
        Area::Processor => "Processor and kernel of the host",
        Area::Memory => "Memory",
        Area::Network => "Network",
        Area::Storage => "Storage",
        Area::Isolation => "Isolation",
    }
}

/// Whether two rows say the same nothing, so that one line will do.
fn alike(one: &Row, next: &Row) -> bool {
    one.verdict == Verdict::NotExamined && next.verdict == one.verdict && next.detail == one.detail
}

fn line(rows: &[Row], paint: &Paint) -> String {
    let row = &rows[0];
    let mark = match row.verdict {
        Verdict::Ok => paint.green("ok"),
        Verdict::Covered => paint.green(" +"),
        Verdict::NotExamined => paint.dim(" ?"),
        _ if row.prevents_guests() => paint.red(" !"),
        Verdict::Limited => paint.yellow(" !"),
        Verdict::Missing => paint.yellow(" —"),
    };
    let name = match rows.len() - 1 {
        0 => row.name.clone(),
        more => format!("{} and {more} more", row.name),
    };
    format!("  {mark}  {name:<NAME_WIDTH$} {}\n", row.detail)
}

/// Breaks `text` into indented lines.
fn indent(text: &str) -> String {
    let mut lines = String::new();
    let mut column = WIDTH;
    for word in text.split_whitespace() {
        let length = word.chars().count() + 1;
        if column + length > WIDTH {
            if !lines.is_empty() {
                lines.push('\n');
            }
            lines.push_str(&" ".repeat(ADVICE_INDENT - 1));
            column = ADVICE_INDENT - 1;
        }
        lines.push(' ');
        lines.push_str(word);
        column += length;
    }
    lines + "\n"
}

fn closing(report: &Report) -> String {
    if report.can_run {
        return "A guest can run here.".to_owned();
    }
    // Rows that were not examined are consequences of others.
    let known = |row: &&Row| row.prevents_guests() && row.verdict != Verdict::NotExamined;
    let mut causes = report.rows.iter().filter(known);
    let first = causes.next().map(|row| format!(": {}: {}", row.name, row.detail)).unwrap_or_default();
    let others = match causes.count() {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    format!("No guest can run here{first}{others}.")
}

/// Escape sequences, or none.
struct Paint {
    colours: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn green(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.with("33", text)
    }

    fn red(&self, text: &str) -> String {
        self.with("31", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, verdict: Verdict, advice: Option<&str>) -> Row {
        Row {
            area: Area::Kvm,
            name: name.into(),
            verdict,
            detail: format!("about {name}"),
            advice: advice.map(str::to_owned),
            required: false,
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report { can_run: !rows.iter().any(Row::prevents_guests), rows }
    }

    #[test]
    fn the_table_is_aligned_and_advice_stands_beneath_its_row() {
        let rows = vec![row("one", Verdict::Ok, None), row("another", Verdict::Missing, Some("get it"))];
        let lines = render(&report(rows), false);
        let detail = |name: &str| {
            let found = lines.lines().find_map(|line| line.split_once(&format!("about {name}")));
            found.map(|(before, _)| before.chars().count())
        };
        assert_eq!(detail("one"), detail("another"));
        assert!(lines.starts_with("KVM\n  ok  one "), "{lines}");
        assert!(lines.ends_with("about another\n        get it\n\nA guest can run here.\n"), "{lines}");
    }

    #[test]
    fn neighbours_with_the_same_advice_share_it() {
        let gap = |name| row(name, Verdict::Missing, Some("shared advice"));
        let rows = vec![gap("a"), gap("b"), row("c", Verdict::Ok, None), gap("d")];
        assert_eq!(render(&report(rows), false).matches("shared advice").count(), 2);
    }

    #[test]
    fn long_advice_is_broken_between_words() {
        let text = indent(&"word ".repeat(60));
        assert!(text.lines().count() > 2);
        assert!(text.lines().all(|line| line.len() <= WIDTH && line.starts_with("        word")), "{text}");
        assert!(indent(&"x".repeat(300)).lines().count() == 1);
    }

    #[test]
    fn there_is_no_escape_sequence_without_colours() {
        let rows: Vec<_> =
            [Verdict::Ok, Verdict::Covered, Verdict::Limited, Verdict::Missing, Verdict::NotExamined]
                .map(|verdict| row("some", verdict, Some("advice")))
                .into();
        assert!(!render(&report(rows.clone()), false).contains('\x1b'));
        assert!(render(&report(rows), true).contains("\x1b[32mok\x1b[0m"));
    }

    #[test]
    fn what_keeps_guests_from_running_is_said_at_the_end() {
        let needed = |name| Row { required: true, ..row(name, Verdict::Missing, None) };
        let one = render(&report(vec![needed("device")]), false);
        assert!(one.ends_with("No guest can run here: device: about device.\n"), "{one}");
        let consequence = Row { verdict: Verdict::NotExamined, ..needed("guest") };
        let two = render(&report(vec![consequence, needed("device"), needed("api")]), false);
        assert!(two.ends_with("No guest can run here: device: about device (and 1 more).\n"), "{two}");
    }

    #[test]
    fn rows_that_were_not_examined_for_the_same_reason_share_a_line() {
        let unknown = |name| Row { detail: "no KVM".into(), ..row(name, Verdict::NotExamined, None) };
        let text = render(
            &report(vec![unknown("a"), unknown("b"), unknown("c"), row("d", Verdict::Ok, None)]),
            false,
        );
        assert!(text.contains("a and 2 more "), "{text}");
        assert_eq!(text.matches("no KVM").count(), 1);
    }

    #[test]
    fn json_is_one_line_with_the_documented_names() {
        let text = json(&report(vec![row("some", Verdict::NotExamined, None)])).unwrap();
        assert_eq!(text.lines().count(), 1);
        for name in ["can-run", "rows", "area", "name", "verdict", "detail", "advice", "required"] {
            assert!(text.contains(&format!("\"{name}\":")), "{name} is missing in {text}");
            assert!(HELP.contains(name), "{name} is not documented");
        }
    }
}
