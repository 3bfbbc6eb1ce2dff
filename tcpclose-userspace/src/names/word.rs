//! The macro that makes a word: an enum and the one table of its names.

/// Makes an enum of the variants in the table, each with its name in metric labels and JSON, `ALL` in the order of the
/// table, and [`Named`](crate::names::words::Named). With `newer`, an unknown name reads as that variant; without, it is
/// refused.
macro_rules! word {
    (
        $(#[$meta:meta])*
        pub enum $Word:ident {
            $($(#[$variant_meta:meta])* $Variant:ident = $name:expr,)+
        }
        $(newer => $newer:ident;)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $Word {
            $($(#[$variant_meta])* $Variant,)+
        }

        impl $Word {
            pub const ALL: [Self; [$(Self::$Variant),+].len()] = [$(Self::$Variant),+];

            /// The name in metric labels and JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }
        }

        impl $crate::names::words::Named for $Word {
            $(const NEWER: Option<Self> = Some(Self::$newer);)?

            fn all() -> impl Iterator<Item = Self> {
                Self::ALL.into_iter()
            }

            fn name(self) -> &'static str {
                Self::name(self)
            }
        }
    };
}
