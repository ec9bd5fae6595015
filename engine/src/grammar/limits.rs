//! What a form may take.

use llguidance::api::ParserLimits;

/// The longest text of a form, in bytes: the largest published schemas that are meant for answers have a tenth of it.
pub(super) const TEXT_BYTES: usize = 256 << 10;

/// Values in a schema, nested ones included: a tenth of a second to compile.
pub(super) const SCHEMA_VALUES: usize = 20_000;

/// Members of one object of a schema, such as properties. The compiler calls itself once for each of them.
pub(super) const SCHEMA_MEMBERS: usize = 2_000;

/// References in a schema: the compiler calls itself along a chain of them.
pub(super) const SCHEMA_REFERENCES: usize = 2_000;

/// The least common multiple of all `multipleOf` of a schema, as whole numbers: the parser has a state for each remainder.
pub(super) const REMAINDERS: u64 = 100_000;

/// Whole numbers up to this are exact as `f64`, in which the compiler computes bounds.
pub(super) const EXACT: f64 = 9_007_199_254_740_992.0;

/// So many tokens of a form are tried when it is compiled: most of what is too complex shows by then, and whatever cannot begin.
pub(super) const TRIED: usize = 4;

/// The stack on which a form is compiled. Pages that are not touched take no memory.
pub(super) const COMPILE_STACK: usize = 256 << 20;

/// Forms that are remembered. Each takes up to some megabytes.
pub(super) const RECENT: usize = 16;

/// The longest token, in bytes: the trie cannot hold longer ones, and no model's are.
pub(super) const TOKEN_BYTES: usize = 1000;

/// The limits of the parser.
pub(super) fn of_parser() -> ParserLimits {
    ParserLimits {
        // 20 ms to build the lexer; a schema of 200 kB takes half of it.
        initial_lexer_fuel: 1_000_000,
        // 15 ms for one token. What a client asks for delays all sequences of the stage.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // 1 to 2 kB each.
        max_lexer_states: 50_000,
        // A few megabytes.
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}
