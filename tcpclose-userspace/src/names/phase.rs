//! The states of the close phase.

use tcpclose_common::state::TcpState;

/// Makes [`Phase`] of TCP states with the same names.
macro_rules! phases {
    ($($Phase:ident,)+) => {
        word! {
            /// A state of the close phase. TIME-WAIT and the later part of FIN-WAIT-2 belong to a minisocket, not to the
            /// socket. In order of the side that closes first, then the other.
            #[repr(u8)]
            pub enum Phase {
                $($Phase = TcpState::$Phase.name(),)+
            }
        }

        impl Phase {
            /// The phase of a socket in `state`; `None` outside the close phase.
            pub const fn of(state: TcpState) -> Option<Self> {
                match state {
                    $(TcpState::$Phase => Some(Self::$Phase),)+
                    _ => None,
                }
            }

            pub const fn state(self) -> TcpState {
                match self {
                    $(Self::$Phase => TcpState::$Phase,)+
                }
            }
        }
    };
}

phases! { FinWait1, FinWait2, Closing, TimeWait, CloseWait, LastAck, }
