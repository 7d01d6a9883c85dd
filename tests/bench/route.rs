//! Network between ocifs and the registry: loopback, a link of a fixed rate, or a link with delay.

use std::time::Duration;

use crate::Result;
use crate::lab::Lab;
use crate::link::Link;
use crate::proxy::Proxy;
use crate::registry::Registry;

/// A route to the images. Dropped in this order: the server before the link it runs behind.
pub(crate) struct Route {
    behind: Option<Registry>,
    _proxy: Option<Proxy>,
    _link: Option<Link>,
    address: String,
}

impl Route {
    /// The registry of all groups, on loopback.
    pub(crate) fn loopback(lab: &Lab) -> Self {
        let address = lab.registry.address().to_owned();
        Self { behind: None, _proxy: None, _link: None, address }
    }

    /// A registry behind a token bucket, in the units of `tc` (`100mbit`, `128kb`).
    pub(crate) fn limited(lab: &Lab, rate: &str, burst: &str) -> Result<Self> {
        let link = Link::new(rate, burst)?;
        let address = format!("{}:5000", link.far());
        let behind = Registry::start(&lab.data, "link", &address, link.command("docker-registry"))?;
        Ok(Self { behind: Some(behind), _proxy: None, _link: Some(link), address })
    }

    /// The registry of all groups, with this delay each way.
    pub(crate) fn delayed(lab: &Lab, delay: Duration) -> Result<Self> {
        let proxy = Proxy::new(lab.registry.address(), delay)?;
        let address = proxy.address();
        Ok(Self { behind: None, _proxy: Some(proxy), _link: None, address })
    }

    /// The registry whose log counts what was fetched.
    pub(crate) fn registry<'a>(&'a self, lab: &'a Lab) -> &'a Registry {
        self.behind.as_ref().unwrap_or(&lab.registry)
    }

    /// `HOST:PORT` of the registry.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/bench/{name}:latest", self.address)
    }
}
