//! Lists of symbols, as `nm` and Linux's build write them: a line with address, type and name for each.

use super::super::image::Image;
use super::refuse;
use super::{BOUNDARY, Candidate, Found, MOST_FUNCTIONS, MOST_NAMES, Symbols, SymbolsError, SymbolsProblem};

/// How long the last function of a list may be: nothing says where it ends.
const LAST: u64 = 4096;

pub(super) fn read(image: &Image<'_>) -> Result<Symbols, SymbolsError> {
    if image.size() > MOST_NAMES {
        let problem = SymbolsProblem::TooLarge { what: "list", size: image.size(), most: MOST_NAMES };
        return Err(refuse(image, problem));
    }
    let mut text = vec![0; image.size() as usize];
    image.read_at(0, &mut text)?;
    let candidates = candidates(&text).map_err(|problem| refuse(image, problem))?;
    // From here on the text only holds names, each of which ends where its line or word does.
    text.iter_mut().filter(|byte| byte.is_ascii_whitespace()).for_each(|byte| *byte = 0);
    Found { names: text, candidates, physical: Vec::new() }.into_symbols(image)
}

fn candidates(text: &[u8]) -> Result<Vec<Candidate>, SymbolsProblem> {
    let mut candidates = Vec::new();
    let mut at = 0;
    for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        if !line.trim_ascii().is_empty() {
            let candidate = candidate(line, at).ok_or(SymbolsProblem::Line { line: number })?;
            if candidates.len() == MOST_FUNCTIONS {
                return Err(SymbolsProblem::TooMany);
            }
            candidates.push(candidate);
        }
        at += line.len() + 1;
    }
    let last = candidates.iter().map(|candidate| candidate.start).max().unwrap_or_default();
    let end = last.saturating_add(LAST);
    candidates.iter_mut().filter(|candidate| candidate.start == last).for_each(|last| last.end = end);
    Ok(candidates)
}

/// The symbol in `line`, which starts at `at`.
fn candidate(line: &[u8], at: usize) -> Option<Candidate> {
    let mut words = line.splitn(3, |&byte| byte == b' ');
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    if name.trim_ascii().is_empty() || !address.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let start = u64::from_str_radix(std::str::from_utf8(address).ok()?, 16).ok()?;
    let rank = match kind {
        b"T" => 0,
        b"W" | b"w" => 1,
        b"t" => 2,
        [letter] if letter.is_ascii_graphic() => BOUNDARY,
        _ => return None,
    };
    let name = u32::try_from(at + line.len() - name.len()).ok()?;
    // Each ends where the next one starts.
    Some(Candidate { start, end: u64::MAX, ends_there: false, name, rank })
}
