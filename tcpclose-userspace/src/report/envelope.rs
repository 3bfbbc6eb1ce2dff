//! The fields that all documents begin with.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Which host a document describes, when, and what it lacks. `document!` puts these fields into each document: serde's
/// `flatten` would buffer every value on reading.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub host: String,
    pub boot_id: String,
    pub at: String,
    pub source: DocumentSource,
    pub incomplete: Vec<String>,
}

/// The origin of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DocumentSource {
    /// The running agent, which saw the transitions.
    Agent,
    /// One dump: ages are what it proves.
    Snapshot,
}

/// A document that carries the version of its schema.
pub trait Versioned: DeserializeOwned {
    fn schema(&self) -> u32;
}

/// Defines a document: the fields of an `Envelope`, in the order in which they are written; the first braces hold the fields
/// before `incomplete`, the second those after it.
macro_rules! document {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $schema:ident
        { $($(#[$early_meta:meta])* pub $early:ident: $early_type:ty,)* }
        { $($(#[$own_meta:meta])* pub $own:ident: $own_type:ty,)* }
    ) => {
        $(#[$meta])*
        pub struct $name {
            /// The version of this document's schema.
            pub schema: u32,
            /// The host's name, as `uname -n` prints it.
            pub host: String,
            /// The kernel's random id of this boot.
            pub boot_id: String,
            /// When the kernel was read: the wall clock, RFC 3339, UTC, nanoseconds.
            pub at: String,
            pub source: $crate::report::envelope::DocumentSource,
            $($(#[$early_meta])* pub $early: $early_type,)*
            /// What could not be seen, one sentence each.
            pub incomplete: Vec<String>,
            $($(#[$own_meta])* pub $own: $own_type,)*
        }

        impl $name {
            /// A document with this envelope; all other fields are empty.
            pub fn within(envelope: $crate::report::envelope::Envelope) -> Self {
                let $crate::report::envelope::Envelope { host, boot_id, at, source, incomplete } = envelope;
                Self {
                    schema: $schema,
                    host,
                    boot_id,
                    at,
                    source,
                    $($early: Default::default(),)*
                    incomplete,
                    $($own: Default::default(),)*
                }
            }
        }
    };
}

pub(crate) use document;
