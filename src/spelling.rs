//! What somebody may have meant who wrote a word that is none of the known ones.
//!
//! Flags of processors and keys of descriptions rely on this. Relies on nothing.

/// No word that is suggested is half as long.
const LONGEST: usize = 40;

/// The known word nearest to `text`, unless none is near.
pub(crate) fn nearest<'w>(text: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    if text.len() > LONGEST {
        return None;
    }
    let close_enough = 1 + text.len() / 5;
    let distances = known.into_iter().map(|word| (distance(text, word), word));
    distances.filter(|&(distance, _)| distance <= close_enough).min().map(|(_, word)| word)
}

/// How many letters have to be changed, put in, left out or exchanged with their neighbour to make one text of
/// another.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for line in 0..=one.len() {
        for column in 0..=other.len() {
            rows[line][column] = match (line, column) {
                (0, all) | (all, 0) => all,
                _ => {
                    let changed = usize::from(one[line - 1] != other[column - 1]);
                    let single = (rows[line - 1][column] + 1)
                        .min(rows[line][column - 1] + 1)
                        .min(rows[line - 1][column - 1] + changed);
                    let exchanged = line > 1
                        && column > 1
                        && one[line - 2..line] == [other[column - 1], other[column - 2]];
                    if exchanged { single.min(rows[line - 2][column - 2] + 1) } else { single }
                }
            };
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        for (written, meant) in [
            ("memori", "memory"),
            ("mmeory", "memory"),
            ("memoryy", "memory"),
            ("dsik", "disk"),
            ("cpu", "cpus"),
        ] {
            assert_eq!(nearest(written, ["cpus", "disk", "memory"]), Some(meant), "{written}");
        }
    }

    #[test]
    fn another_word_is_not_taken_for_one() {
        for other in ["teapot", "memorandum", "é", &"memory".repeat(100_000)] {
            assert_eq!(nearest(other, ["cpus", "disk", "memory"]), None, "{other}");
        }
        assert_eq!(nearest("memory", []), None);
    }
}
