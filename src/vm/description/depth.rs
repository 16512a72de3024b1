//! How deep a description may be, looked at before a tree is made of it.
//!
//! `toml` makes a tree of any text, and lets go of it level by level on the stack. It bounds how deep brackets go and
//! how many parts a key has, to 80 each; but the product of the two is more than a thread's stack holds.

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::error::Reason;
use super::reading::Problem;

/// No key of a description has more dots, not even half as many.
const MOST_DOTS: usize = 8;

/// Fails at a key of too many parts.
pub(super) fn check(text: &str) -> Result<(), Problem> {
    let mut dots = 0;
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Equals
            | TokenKind::Comma
            | TokenKind::LeftSquareBracket
            | TokenKind::RightSquareBracket
            | TokenKind::LeftCurlyBracket
            | TokenKind::RightCurlyBracket => dots = 0,
            _ => {}
        }
        if dots > MOST_DOTS {
            return Err(Problem { offset: token.span().start(), reason: Reason::Deep });
        }
    }
    Ok(())
}
