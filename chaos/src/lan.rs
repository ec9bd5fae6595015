//! A network of machines within this one: network namespaces on a bridge, for what loopback cannot
//! show. Linux as root only.
//!
//! The bridge has a namespace of its own, so the network of the machine itself is not touched.
//! All namespaces bear the id of the process that made them; they go with their [`Lan`], and what
//! a killed test has left is removed by the next.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::process::is_running;

/// How all namespaces begin.
const PREFIX: &str = "planaria-";
/// The network interface of every machine.
const INTERFACE: &str = "eth0";
/// That of a machine on two networks to the second.
const SECOND_INTERFACE: &str = "eth1";

/// Machines on one switch. Removed when dropped.
#[derive(Debug)]
pub struct Lan {
    name: String,
    machines: Vec<String>,
}

/// A machine on a [`Lan`], with loopback and one interface, `eth0`.
#[derive(Debug, Clone)]
pub struct Machine {
    namespace: String,
    number: u8,
    address: IpAddr,
}

impl Lan {
    /// A switch without machines. `None` where the system does not let us make one, which is said
    /// on standard error: the test that asked for it is to be left out.
    ///
    /// # Errors
    /// When one could be made, and then was not.
    pub fn new() -> Result<Option<Self>> {
        static LANS: AtomicU32 = AtomicU32::new(0);
        let number = LANS.fetch_add(1, Ordering::Relaxed);
        let lan =
            Self { name: format!("{PREFIX}{}-{number}", std::process::id()), machines: Vec::new() };
        if let Err(error) = ip(&["netns", "add", &lan.name]) {
            // Written past the test runner, which shows what passing tests print to nobody.
            writeln!(
                std::io::stderr(),
                "LEFT OUT: no network namespace can be made ({error:#}); this test needs Linux, \
                 root and iproute2"
            )?;
            return Ok(None);
        }
        remove_leftovers();
        ip(&["-n", &lan.name, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &lan.name, "link", "set", "br0", "up"])?;
        Ok(Some(lan))
    }

    /// Another machine, with the next address of 10.77.0.0/24 and a link-local one of IPv6.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn machine(&mut self) -> Result<Machine> {
        let machine = self.machine_without_address()?;
        machine.ip(&["addr", "add", &format!("{}/24", machine.address), "dev", INTERFACE])?;
        Ok(machine)
    }

    /// Another machine, which has no address of IPv4 yet.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn machine_without_address(&mut self) -> Result<Machine> {
        let number = u8::try_from(self.machines.len() + 1).context("too many machines")?;
        let namespace = format!("{}-{number}", self.name);
        ip(&["netns", "add", &namespace])?;
        self.machines.push(namespace.clone());
        let machine = Machine { namespace, number, address: IpAddr::from([10, 77, 0, number]) };
        machine.ip(&["link", "set", "lo", "up"])?;
        self.connect(&machine, INTERFACE)?;
        Ok(machine)
    }

    /// Connects a machine of another network with this one as well: by an interface `eth1`, with an
    /// address of 10.78.0.0/24. This network must have no machines of its own.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn plug(&self, machine: &Machine) -> Result<()> {
        self.connect(machine, SECOND_INTERFACE)?;
        let address = format!("10.78.0.{}/24", machine.number);
        machine.ip(&["addr", "add", &address, "dev", SECOND_INTERFACE])
    }

    fn connect(&self, machine: &Machine, interface: &str) -> Result<()> {
        let (switch, port) = (self.name.as_str(), format!("port{}", machine.number));
        let namespace = machine.namespace.as_str();
        ip(&[
            "link", "add", interface, "netns", namespace, "type", "veth", "peer", "name", &port,
            "netns", switch,
        ])?;
        ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"])?;
        machine.ip(&["link", "set", interface, "up"])
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in self.machines.iter().chain([&self.name]) {
            // Processes in it keep it until they end; then it goes by itself.
            drop(ip(&["netns", "delete", namespace]));
        }
    }
}

impl Machine {
    /// Its address of IPv4.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// What to start, and with which arguments before its own, so that `binary` runs there.
    #[must_use]
    pub fn command(&self, binary: &Path) -> (&'static Path, Vec<String>) {
        let arguments = ["netns", "exec", &self.namespace].map(str::to_owned);
        let binary = binary.display().to_string();
        (Path::new("ip"), arguments.into_iter().chain([binary]).collect())
    }

    /// Runs `ip` on it.
    ///
    /// # Errors
    /// When `ip` fails; with what it said.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        let within = ["-n", &self.namespace].into_iter().chain(arguments.iter().copied());
        ip(&within.collect::<Vec<_>>())
    }

    /// Lets no more than so much leave by an interface, in the words of `tc` (`2mbit`).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn narrow(&self, interface: &str, rate: &str) -> Result<()> {
        let queue = ["root", "tbf", "rate", rate, "burst", "8kb", "latency", "500ms"];
        let tc = ["netns", "exec", &self.namespace, "tc", "qdisc", "add", "dev", interface];
        ip(&tc.into_iter().chain(queue).collect::<Vec<_>>())
    }

    /// Takes its address of IPv4 away and gives it another.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn move_to(&mut self, address: IpAddr) -> Result<()> {
        self.ip(&["-4", "addr", "flush", "dev", INTERFACE])?;
        self.address = address;
        self.ip(&["addr", "add", &format!("{address}/24"), "dev", INTERFACE])
    }

    /// Does something on a thread that sees this machine's network.
    ///
    /// # Errors
    /// When the thread cannot go there, or `work` fails.
    pub async fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, done) = tokio::sync::oneshot::channel();
        let namespace = self.namespace.clone();
        // A thread of its own, since it stays there.
        std::thread::spawn(move || {
            // Nobody waits any more otherwise.
            drop(tell.send(enter(&namespace).and_then(|()| work())));
        });
        done.await.context("the thread ended without a word")?
    }
}

#[cfg(target_os = "linux")]
fn enter(namespace: &str) -> Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd as _;
    let file = std::fs::File::open(Path::new("/run/netns").join(namespace))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("setns")
}

#[cfg(not(target_os = "linux"))]
fn enter(_: &str) -> Result<()> {
    anyhow::bail!("there are no network namespaces here")
}

/// Removes the namespaces of processes that have ended.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.and_then(|pid| pid.parse().ok()).is_some_and(|pid| !is_running(pid)) {
            // Another test may be just as fast.
            drop(ip(&["netns", "delete", &name]));
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
