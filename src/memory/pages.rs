//! Sets of pages of guest memory, by their numbers in the memory's image: regions follow each other without gaps.

use std::ops::Range;

const BITS: u64 = u64::BITS as u64;

/// A set of pages: a bit for each, up to the last that is in it.
#[derive(Debug, Clone, Default)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// Adds pages.
    pub fn insert(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        let words = (pages.end.div_ceil(BITS)) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        self.each_word(pages, |word, bits| *word |= bits);
    }

    /// Takes pages out.
    pub fn remove(&mut self, pages: Range<u64>) {
        let end = pages.end.min(self.words.len() as u64 * BITS);
        self.each_word(pages.start..end, |word, bits| *word &= !bits);
    }

    /// The range has to be within the words.
    fn each_word(&mut self, pages: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let mut at = pages.start;
        while at < pages.end {
            let (bit, left) = (at % BITS, pages.end - at);
            let count = left.min(BITS - bit);
            change(&mut self.words[(at / BITS) as usize], u64::MAX >> (BITS - count) << bit);
            at += count;
        }
    }

    /// Adds all pages of another set.
    pub fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Takes all pages out that are in another set.
    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / BITS).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (page % BITS) & 1 != 0)
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Its pages in ascending order, as many at once as follow each other.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, 0)?;
            // Behind the last word there is no page.
            at = self.next(start, u64::MAX).unwrap_or(self.words.len() as u64 * BITS);
            Some(start..at)
        })
    }

    /// The first page from `at` on that is in the set or, if `inverted` is all ones, is not.
    fn next(&self, at: u64, inverted: u64) -> Option<u64> {
        let mut number = usize::try_from(at / BITS).ok()?;
        let mut word = (self.words.get(number)? ^ inverted) & u64::MAX << (at % BITS);
        while word == 0 {
            number += 1;
            word = self.words.get(number)? ^ inverted;
        }
        Some(number as u64 * BITS + u64::from(word.trailing_zeros()))
    }
}

impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        self.runs().eq(other.runs())
    }
}

impl Eq for PageSet {}

impl From<Range<u64>> for PageSet {
    fn from(pages: Range<u64>) -> Self {
        std::iter::once(pages).collect()
    }
}

impl FromIterator<Range<u64>> for PageSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut set = Self::default();
        runs.into_iter().for_each(|run| set.insert(run));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_are_as_long_as_they_can_be() {
        let set: PageSet =
            [3..5, 5..64, 64..70, 127..128, 128..129, 200..200, 320..321].into_iter().collect();
        assert_eq!(set.runs().collect::<Vec<_>>(), [3..70, 127..129, 320..321]);
        assert_eq!(set.count(), 67 + 2 + 1);
        assert!(PageSet::default().runs().next().is_none());
        assert_eq!(PageSet::from(0..64).runs().next(), Some(0..64));
    }

    #[test]
    fn a_set_is_what_a_set_of_numbers_is() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut set, mut expected) = (PageSet::default(), BTreeSet::new());
        for step in 0..2000 {
            let start = random(500);
            let pages = start..start + random(90);
            if step % 3 == 0 {
                set.remove(pages.clone());
                expected.retain(|page| !pages.contains(page));
            } else if step % 50 == 1 {
                let other: PageSet = [pages.clone(), 70..75].into_iter().collect();
                set.subtract(&other);
                expected.retain(|page| !pages.contains(page) && !(70..75).contains(page));
            } else {
                set.add(&PageSet::from(pages.clone()));
                expected.extend(pages);
            }
            assert!(set.runs().flatten().eq(expected.iter().copied()));
            assert_eq!((set.count(), set.is_empty()), (expected.len() as u64, expected.is_empty()));
            let page = random(700);
            assert_eq!(set.contains(page), expected.contains(&page));
        }
        assert!(!set.contains(u64::MAX));
    }
}
