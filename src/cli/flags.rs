//! `lodger run --cpu help`: the processors and flags there are to choose from.

use std::io::{self, Write};
use std::str::FromStr;

use lodger::hv::kvm::Kvm;
use lodger::vm::offered_flags;
use lodger::x86::model::{CpuModel, CpuModelError, is_in_baseline, known_flags};

use super::AnyError;
use super::say::shown;

/// Lines are broken before this column.
const WIDTH: usize = 110;

/// What `--cpu` can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuChoice {
    /// The list is wanted, and no guest.
    Help,
    /// A processor.
    Model(CpuModel),
}

impl FromStr for CpuChoice {
    type Err = CpuModelError;

    fn from_str(text: &str) -> Result<Self, CpuModelError> {
        match text {
            "help" => Ok(Self::Help),
            _ => text.parse().map(Self::Model),
        }
    }
}

/// Prints the list. Without KVM nobody knows what it offers; the flags are printed all the same.
pub fn print() -> Result<(), AnyError> {
    let offered = Kvm::open().map_err(AnyError::from).and_then(|kvm| Ok(offered_flags(&kvm)?));
    let offered = offered.map_err(|error| error.to_string());
    let mut output = io::stdout();
    let written = output.write_all(list(offered.as_deref()).as_bytes()).and_then(|()| output.flush());
    shown("the list of flags", written).map(drop)
}

fn list(offered: Result<&[&'static str], &String>) -> String {
    let baseline: Vec<_> = known_flags().into_iter().filter(|flag| is_in_baseline(flag)).collect();
    let mut text = String::from("Processors\n  host      every flag that this host offers [default]\n");
    text += "  baseline  what servers have had since 2009 (Intel) or 2011 (AMD), so that a guest can move:\n";
    text += &lines(&baseline);
    match offered {
        Ok(offered) => {
            let (here, others): (Vec<_>, Vec<_>) =
                known_flags().into_iter().partition(|flag| offered.contains(flag));
            text += &format!("\nFlags that this host offers\n{}", lines(&here));
            text += &format!("\nFlags that it does not offer\n{}", lines(&others));
        }
        Err(error) => {
            text +=
                &format!("\nFlags (what this host offers is not known: {error})\n{}", lines(&known_flags()));
        }
    }
    text + "\nExamples: --cpu host,-avx512f   --cpu baseline,+aes,+ibrs,+ssbd\n"
}

/// The words in lines of bearable length.
fn lines(words: &[&str]) -> String {
    let mut text = String::new();
    let mut column = WIDTH;
    for word in words {
        if column + 1 + word.len() > WIDTH {
            text += if text.is_empty() { "   " } else { "\n   " };
            column = 3;
        }
        text.push(' ');
        text += word;
        column += 1 + word.len();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str, title: &str) -> Vec<String> {
        let (_, rest) = text.split_once(&format!("{title}\n")).unwrap();
        let (block, _) = rest.split_once("\n\n").unwrap();
        block.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_flag_is_listed_where_it_belongs() {
        let text = list(Ok(&["sse2", "avx2"]));
        assert_eq!(listed(&text, "Flags that this host offers"), ["sse2", "avx2"]);
        let others = listed(&text, "Flags that it does not offer");
        assert!(others.contains(&"avx512f".to_owned()) && !others.contains(&"avx2".to_owned()));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
    }

    #[test]
    fn without_kvm_all_flags_are_listed_and_it_is_said_why() {
        let text = list(Err(&"no such device".to_owned()));
        let title = "Flags (what this host offers is not known: no such device)";
        assert_eq!(listed(&text, title).len(), known_flags().len());
    }

    #[test]
    fn help_is_no_processor() {
        assert_eq!("help".parse(), Ok(CpuChoice::Help));
        assert_eq!("host".parse(), Ok(CpuChoice::Model(CpuModel::default())));
    }
}
