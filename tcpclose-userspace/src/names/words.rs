//! Words in documents and on streams: each is written by its name.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use tcpclose_common::state::TcpState;

/// Reads a string by `read`, without a copy of it.
pub fn text<'de, T, D: Deserializer<'de>>(
    from: D,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<F>(F);

    impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }

    from.deserialize_str(Text(read))
}

/// A word that is written by its name.
pub(crate) trait Named: Copy + Sized {
    /// The value of a word that only a newer agent knows; without this, the word is refused.
    const NEWER: Option<Self> = None;

    fn all() -> impl Iterator<Item = Self>;
    fn name(self) -> &'static str;

    fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|word| word.name() == name).or(Self::NEWER)
    }
}

impl Named for TcpState {
    fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).filter_map(Self::from_raw)
    }

    fn name(self) -> &'static str {
        Self::name(self)
    }
}

pub(crate) mod named {
    use super::*;

    pub fn serialize<T: Named, S: Serializer>(word: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(word.name())
    }

    pub fn deserialize<'de, T: Named, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        text(from, |name| T::from_name(name).ok_or_else(|| format!("unknown word {name:?}")))
    }
}

pub(crate) mod named_list {
    use super::*;

    pub fn serialize<T: Named, S: Serializer>(words: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(words.iter().map(|word| word.name()))
    }

    pub fn deserialize<'de, T: Named, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        let word = |name: String| {
            T::from_name(&name).ok_or_else(|| D::Error::custom(format_args!("unknown word {name:?}")))
        };
        names.into_iter().map(word).collect()
    }
}

pub(crate) mod named_or_null {
    use super::*;

    /// A word; `None` for one that this version does not know.
    struct Word<T>(Option<T>);

    impl<'de, T: Named> Deserialize<'de> for Word<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            text(from, |name| Ok(Self(T::from_name(name))))
        }
    }

    pub fn serialize<T: Named, S: Serializer>(word: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        word.map(T::name).serialize(to)
    }

    pub fn deserialize<'de, T: Named, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        Ok(Option::<Word<T>>::deserialize(from)?.and_then(|Word(word)| word))
    }
}
