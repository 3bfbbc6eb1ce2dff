//! In the place of TLS in a build without the feature `tls`: a web configuration that asks for it is refused.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use tokio::net::TcpStream;

use crate::agent::server::web::fields::Field;
use crate::agent::server::web::yaml::YamlValue;
use crate::failure::Failure;

/// Reads a file that the configuration names.
pub type Read<'a> = &'a mut dyn FnMut(&Path) -> Result<Vec<u8>, Failure>;

/// There are none.
#[derive(Debug)]
pub struct Settings(Infallible);

/// There is none.
#[derive(Clone, Debug)]
pub struct Acceptor(Infallible);

impl Acceptor {
    /// # Errors
    /// None: there is no acceptor.
    pub async fn accept(self, _: TcpStream) -> io::Result<TcpStream> {
        match self.0 {}
    }
}

/// # Errors
/// When the section `tls_server_config` says anything.
pub fn settings(field: &Field<'_, '_>, _: &Path) -> Result<Option<Settings>, Failure> {
    match field.node.map(|node| &node.value) {
        None | Some(YamlValue::Nothing) => Ok(None),
        Some(YamlValue::Table(entries)) if entries.is_empty() => Ok(None),
        Some(_) => Err(field.wrong("this build has no TLS", "build it with the feature tls")),
    }
}

/// # Errors
/// None: there are no settings.
pub fn server(settings: &Settings, _: Read<'_>) -> Result<Acceptor, Failure> {
    match settings.0 {}
}
