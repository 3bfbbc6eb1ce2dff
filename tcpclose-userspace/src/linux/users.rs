//! Users and groups by name, from /etc/passwd and /etc/group. Those that only a directory service knows are given by number: a
//! static program cannot load the C library's modules for it.

use std::fs;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// A group, by the name or number with which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixGroup {
    pub name: String,
    pub gid: u32,
}

/// The user `text`, a name or a number.
///
/// # Errors
/// In words, when there is no such user.
pub fn user(text: &str) -> Result<u32, String> {
    id_of(text, USERS, "user")
}

/// The group `text`, a name or a number.
///
/// # Errors
/// In words, when there is no such group.
pub fn group(text: &str) -> Result<UnixGroup, String> {
    id_of(text, GROUPS, "group").map(|gid| UnixGroup { name: text.to_owned(), gid })
}

/// The name of the user `uid`, or its number.
pub fn user_name(uid: u32) -> String {
    let users = fs::read_to_string(USERS).unwrap_or_default();
    let name = entries(&users).find(|(_, id)| *id == uid).map(|(name, _)| name.to_owned());
    name.unwrap_or_else(|| uid.to_string())
}

fn id_of(text: &str, file: &str, what: &str) -> Result<u32, String> {
    let id = match text.parse() {
        // (uid_t) -1 means "unchanged" to chown(2).
        Ok(u32::MAX) => None,
        Ok(id) => Some(id),
        Err(_) => {
            let table = fs::read_to_string(file)
                .map_err(|why| format!("{file} cannot be read ({why}); write a number"))?;
            entries(&table).find(|(name, _)| *name == text).map(|(_, id)| id)
        }
    };
    id.ok_or_else(|| format!("no such {what} in {file}; write one that is there, or a number"))
}

/// Names and numbers of `name:password:number:…` (passwd(5), group(5)).
fn entries(table: &str) -> impl Iterator<Item = (&str, u32)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_taken_and_strangers_are_not() {
        assert_eq!((user("root"), user("0"), user("4242")), (Ok(0), Ok(0), Ok(4242)));
        assert_eq!(group("root"), Ok(UnixGroup { name: "root".into(), gid: 0 }));
        assert_eq!(group("77").map(|group| group.gid), Ok(77));
        let printed = user("no-such-user").unwrap_err();
        assert_eq!(printed, "no such user in /etc/passwd; write one that is there, or a number");
        for bad in ["", "-1", "4294967295", "4294967296", "root:x"] {
            assert!(group(bad).is_err_and(|why| why.starts_with("no such group in /etc/group; ")), "{bad}");
        }
        assert_eq!((user_name(0), user_name(4_000_000_000)), ("root".to_owned(), "4000000000".to_owned()));
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let table = "adm:x:4:syslog\n\n+::\nbroken:x\nnis:x:many:\nops:x:1001:alice,bob\n";
        assert_eq!(entries(table).collect::<Vec<_>>(), [("adm", 4), ("ops", 1001)]);
    }
}
