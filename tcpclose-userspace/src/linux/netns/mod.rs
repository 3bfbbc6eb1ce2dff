//! Finds and enters network namespaces.
//!
//! A namespace stays while a process, a mount, a descriptor or a socket holds it; a descriptor of ours would keep a dead
//! container's interfaces alive. So nothing here is kept open: only the path of a namespace is remembered, and entering it
//! checks that it is still the same one (inodes are reused).
//!
//! * `place`: a namespace, and the paths to it; `search`: finds all, also in mount tables (`mounts`).
//! * `visitor`: a thread that enters them; `population`: how many sockets each has; `user`: the user it belongs to, and
//!   `owner`: whether that is the host's root, a container or a user.

mod mounts;
mod owner;
mod place;
mod population;
mod search;
mod user;
mod visitor;

pub use crate::linux::netns::mounts::UnreadMounts;
pub use crate::linux::netns::owner::owner;
pub use crate::linux::netns::place::{Netns, NetnsPath, has_cookies, own, own_place, place_of};
pub use crate::linux::netns::population::{Population, population};
pub use crate::linux::netns::search::{Descriptors, FoundNetns, Scope, find, held};
pub use crate::linux::netns::visitor::{NetnsVisitor, with_visitor};

#[cfg(test)]
mod tests;
