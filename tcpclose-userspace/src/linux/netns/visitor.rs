//! A thread that enters network namespaces.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::linux::netns::place::{Netns, NetnsPath, Way, own};

/// Runs `visit` on a thread of its own that may enter namespaces, so that no other thread is ever left in a namespace that
/// it was not started in.
///
/// # Errors
/// When the thread cannot be started, or panics.
pub fn with_visitor<T: Send>(visit: impl FnOnce(&mut NetnsVisitor) -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, || visit(&mut NetnsVisitor { moved: false }))?;
        thread.join().map_err(|_| io::Error::other("the thread that visits network namespaces panicked"))
    })
}

/// A thread that may change its network namespace.
pub struct NetnsVisitor {
    moved: bool,
}

impl NetnsVisitor {
    /// Enters the namespace at `place`.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_SYS_ADMIN there (and, for the namespace of a process, the right to
    /// trace that); [`ErrorKind::NotFound`] when nothing leads there any more.
    pub fn enter(&mut self, place: &NetnsPath) -> io::Result<Netns> {
        if !self.moved && own()?.inum == place.inum {
            return Ok(Netns { name: place.name.clone(), ..own()? });
        }
        let mut failed = io::Error::from(ErrorKind::NotFound);
        for way in &place.ways {
            match self.enter_by(way, place) {
                Ok(()) => return Ok(Netns { name: place.name.clone(), ..own()? }),
                // A refusal says more than a way that has ended meanwhile.
                Err(why) if failed.kind() != ErrorKind::PermissionDenied => failed = why,
                Err(_) => {}
            }
        }
        Err(failed)
    }

    fn enter_by(&mut self, way: &Way, place: &NetnsPath) -> io::Result<()> {
        let file = way.open(place.inum)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        self.moved = true;
        Ok(())
    }
}
