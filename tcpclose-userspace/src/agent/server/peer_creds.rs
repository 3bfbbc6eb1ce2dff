//! Credentials of a client on the unix socket, by which it may destroy sockets. The kernel records those of
//! the process that connected, at that time (net/unix/af_unix.c, copy_peercred(), 5.8 to 6.18).

use std::fmt;
use std::os::fd::AsRawFd;

use tokio::net::UnixStream;

use crate::linux::users::UnixGroup;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// In the agent's PID namespace; `None` if the process is not in it.
    pid: Option<i32>,
    /// In the agent's user namespace; `None` if the kernel does not tell.
    uid: Option<u32>,
    gid: Option<u32>,
    /// Supplementary groups.
    groups: Vec<u32>,
}

impl Caller {
    pub fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self {
            pid: credentials.and_then(|credentials| credentials.pid()),
            uid: credentials.map(|credentials| credentials.uid()),
            gid: credentials.map(|credentials| credentials.gid()),
            groups: groups(stream).unwrap_or_default(),
        }
    }

    /// Whether it is root in the agent's user namespace, or in `group`.
    pub fn may_kill(&self, group: Option<&UnixGroup>) -> bool {
        let member = |group: &UnixGroup| self.gid == Some(group.gid) || self.groups.contains(&group.gid);
        self.uid == Some(0) || group.is_some_and(member)
    }
}

/// The supplementary groups of the client (SO_PEERGROUPS, 4.13).
fn groups(stream: &UnixStream) -> Option<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 32];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(groups.as_slice())).ok()?;
        // SAFETY: the option's value is an array of gid_t, which is u32, of at most `length` bytes, and
        // `groups` has so many.
        let done = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = length as usize / size_of::<u32>();
        if done == 0 {
            groups.truncate(needed);
            return Some(groups);
        }
        // With ERANGE the kernel has set the needed length (net/core/sock.c, sk_getsockopt()).
        let too_few = std::io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
        if !too_few || needed <= groups.len() {
            return None;
        }
        groups.resize(needed, 0);
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, id)) in [
            ("pid", self.pid.map(i64::from)),
            ("uid", self.uid.map(i64::from)),
            ("gid", self.gid.map(i64::from)),
        ]
        .into_iter()
        .enumerate()
        {
            let space = if at == 0 { "" } else { " " };
            match id {
                Some(id) => write!(f, "{space}{name} {id}")?,
                None => write!(f, "{space}{name} unknown")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_members_of_the_group_may_destroy() {
        let ops = UnixGroup { name: "ops".into(), gid: 1001 };
        let user = Caller { pid: Some(7), uid: Some(1000), gid: Some(1000), groups: vec![4, 1001] };
        assert!(user.may_kill(Some(&ops)) && !user.may_kill(None));
        assert!(!Caller { groups: vec![4], ..user.clone() }.may_kill(Some(&ops)));
        assert!(Caller { gid: Some(1001), groups: vec![], ..user.clone() }.may_kill(Some(&ops)));
        assert!(Caller { uid: Some(0), ..user.clone() }.may_kill(None));
        assert!(!Caller::default().may_kill(Some(&UnixGroup { name: "root".into(), gid: 0 })));
        assert_eq!(user.to_string(), "pid 7 uid 1000 gid 1000");
        assert_eq!(Caller::default().to_string(), "pid unknown uid unknown gid unknown");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_kernel_tells_the_credentials_of_the_client() {
        let (one, _other) = UnixStream::pair().unwrap();
        let caller = Caller::of(&one);
        assert_eq!(caller.pid, Some(std::process::id() as i32));
        assert_eq!(caller.uid, Some(rustix::process::geteuid().as_raw()));
        let own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        let mut groups = caller.groups;
        groups.sort_unstable();
        let mut expected = own;
        expected.sort_unstable();
        assert_eq!(groups, expected);
    }
}
