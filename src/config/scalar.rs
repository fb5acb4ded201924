//! A value of the file before it is parsed, so that an error speaks of the setting and not of a type.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::error::one_of;

/// The value of a key.
#[derive(Debug, PartialEq)]
pub(super) enum Scalar {
    Number(i64),
    Switch(bool),
    Text(String),
    /// A fraction, a date, a list or a table.
    Other,
}

impl Scalar {
    /// The number, if it is one from 0 on.
    pub(super) fn count(&self) -> Option<usize> {
        match self {
            Self::Number(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Parses it as its flag is parsed.
    pub(super) fn parse<T: FromStr<Err: fmt::Display>, E: de::Error>(self) -> Result<T, E> {
        let text = match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Switch(_) | Self::Other => return Err(E::custom("write it as text in quotes")),
        };
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

/// A value, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Scalars {
    Several(Vec<Scalar>),
    One(Scalar),
}

impl From<Scalars> for Vec<Scalar> {
    fn from(scalars: Scalars) -> Self {
        match scalars {
            Scalars::Several(scalars) => scalars,
            Scalars::One(scalar) => vec![scalar],
        }
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(number).map_or(Scalar::Other, Scalar::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_bool<E>(self, yes: bool) -> Result<Scalar, E> {
        Ok(Scalar::Switch(yes))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Scalar, A::Error> {
        while table.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

/// A value in the form that its flag takes.
#[derive(Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer)?.parse().map(Self)
    }
}

/// One of the words that its flag takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<T>(pub(super) T);

impl<'de, T: ValueEnum> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => T::from_str(&text, false).ok(),
            _ => None,
        };
        word.map(Self).ok_or_else(|| {
            let words = T::value_variants().iter().filter_map(T::to_possible_value);
            let words: Vec<String> = words.map(|word| word.get_name().to_owned()).collect();
            de::Error::custom(format!("it must be {}", one_of(&words)))
        })
    }
}

/// A switch.
pub(super) fn yes_or_no<'de, D>(deserializer: D) -> Result<Option<bool>, D::Error>
where
    D: Deserializer<'de>,
{
    match Scalar::deserialize(deserializer)? {
        Scalar::Switch(yes) => Ok(Some(yes)),
        _ => Err(de::Error::custom("it must be true or false")),
    }
}
