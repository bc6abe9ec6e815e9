//! `weighhouse coordinator …`: make a federation, run its daemon.

use crate::metrics;
use anyhow::{Context, Result};
use clap::Subcommand;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use weighhouse_coordinator::home::{Authority, Home};
use weighhouse_coordinator::listener::Coordinator;
use weighhouse_shared::telemetry;
use weighhouse_shared::tls::from_pem;

#[derive(Debug, Subcommand)]
pub enum CoordinatorVerb {
    /// Make a new federation: authority, coordinator's and operator's keys, settings
    #[command(
        after_help = "Example:\n  weighhouse coordinator init --home coordinator-home --public-address shop.example:7443"
    )]
    Init {
        /// Folder to make
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "coordinator-home", value_name = "DIR")]
        home: PathBuf,
        /// Address and UDP port to listen on
        #[arg(long, default_value = "0.0.0.0:7443", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// Host and UDP port at which sites reach it; goes into invites [default: what it listens on, from this
        /// machine]
        #[arg(long, value_name = "HOST:PORT")]
        public_address: Option<String>,
        /// Make requests (.csr) for another organisation's authority to sign, instead of an authority of our own
        #[arg(long)]
        external_authority: bool,
    },
    /// Put certificates that another organisation's authority signed in their places
    #[command(
        after_help = "Example:\n  weighhouse coordinator install --home hq --authority authority.pem --certificates coordinator.pem operator.pem issuer.pem\n\nFor a home made with `coordinator init --external-authority`. Have coordinator.csr, operator.csr and issuer.csr signed as they are: subject, names, usages, and issuer.csr as an authority of path length 0. The authority must sign for this federation alone: whoever has an operator's certificate of it is an operator. Run it again when they were renewed, and restart the daemon."
    )]
    Install {
        /// Folder made by `weighhouse coordinator init`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "coordinator-home", value_name = "DIR")]
        home: PathBuf,
        /// The authority's certificate (PEM)
        #[arg(long, value_name = "FILE")]
        authority: PathBuf,
        /// The three certificates (PEM), in any order
        #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
        certificates: Vec<PathBuf>,
    },
    /// Make the coordinator's, the operator's and the issuer's certificates anew, with the authority's key
    #[command(
        after_help = "Example:\n  weighhouse coordinator renew --home hq --authority-key /media/safe/authority.key\n\nWhile authority.key is in the home, the daemon does this by itself. Moved elsewhere, it is needed for nothing else: sites' certificates, new and renewed, are signed with issuer.key. Restart the daemon after this."
    )]
    Renew {
        /// Folder made by `weighhouse coordinator init`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "coordinator-home", value_name = "DIR")]
        home: PathBuf,
        /// The authority's key [default: authority.key in the home]
        #[arg(long, value_name = "FILE")]
        authority_key: Option<PathBuf>,
    },
    /// Run the daemon
    #[command(after_help = "Example:\n  weighhouse coordinator serve --home coordinator-home")]
    Serve {
        /// Folder made by `weighhouse coordinator init`
        #[arg(long, env = "WEIGHHOUSE_HOME", default_value = "coordinator-home", value_name = "DIR")]
        home: PathBuf,
        /// End when standard input closes, as when the program that started it is gone
        #[arg(long, hide = true)]
        end_with_stdin: bool,
    },
}

pub fn run(verb: CoordinatorVerb) -> Result<()> {
    match verb {
        CoordinatorVerb::Init { home, listen, public_address, external_authority } => {
            let authority = if external_authority { Authority::External } else { Authority::Own };
            let public_address = public_address.unwrap_or_else(|| from_this_machine(listen).to_string());
            Home::init(&home, listen, &public_address, authority)?;
            println!("made a federation in {}", home.display());
            match authority {
                Authority::Own => println!("next: weighhouse coordinator serve --home {}", home.display()),
                Authority::External => println!(
                    "next: have the .csr files in it signed, then weighhouse coordinator install --home {}",
                    home.display()
                ),
            }
            Ok(())
        }
        CoordinatorVerb::Install { home, authority, certificates } => {
            let read = |path: &PathBuf| -> Result<_> {
                let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                from_pem(&text).with_context(|| format!("{} does not hold a certificate", path.display()))
            };
            let certificates = certificates.iter().map(read).collect::<Result<Vec<_>>>()?;
            Home::at(&home).install(&read(&authority)?, &certificates)?;
            println!("installed the certificates of coordinator, operator and issuer");
            println!("next: weighhouse coordinator serve --home {}", home.display());
            Ok(())
        }
        CoordinatorVerb::Renew { home, authority_key } => {
            let home = Home::at(&home);
            home.config()?;
            let key = authority_key.unwrap_or_else(|| home.path("authority.key"));
            let renewed = home.renew(&key, |_| true)?;
            println!("renewed the certificates of {}; restart the daemon", renewed.join(", "));
            Ok(())
        }
        CoordinatorVerb::Serve { home, end_with_stdin } => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let serves_metrics = Home::at(&home).config()?.metrics;
            let outcome = runtime.block_on(async {
                let coordinator = Coordinator::start(&Home::at(&home))?;
                println!("listening on {}", coordinator.address());
                let counted = coordinator.metrics();
                let measured = async {
                    let Some(address) = serves_metrics else { return std::future::pending().await };
                    let (listener, address) = metrics::listen(address).await?;
                    println!("the coordinator serves metrics on http://{address}/metrics");
                    let registry = counted.registry();
                    match metrics::serve(listener, || telemetry::to_text(&registry)).await {}
                };
                tokio::select! {
                    outcome = measured => outcome,
                    outcome = coordinator.run() => Ok(outcome?),
                    () = crate::client::asked_to_end(end_with_stdin) => Ok(()),
                }
            });
            runtime.shutdown_background();
            outcome
        }
    }
}

/// Where what listens there is reached from this machine.
fn from_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invites_name_what_the_coordinator_listens_on_unless_another_address_is_given() {
        for (listen, reached) in [
            ("0.0.0.0:7443", "127.0.0.1:7443"),
            ("127.0.0.1:17443", "127.0.0.1:17443"),
            ("10.1.2.3:443", "10.1.2.3:443"),
            ("[::]:7443", "[::1]:7443"),
        ] {
            assert_eq!(from_this_machine(listen.parse().unwrap()).to_string(), reached);
        }
    }
}
