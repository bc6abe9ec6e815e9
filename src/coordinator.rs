//! `weighhouse coordinator …`: make a federation, run its daemon.

use anyhow::Result;
use clap::Subcommand;
use std::net::SocketAddr;
use std::path::PathBuf;
use weighhouse_coordinator::home::Home;
use weighhouse_coordinator::listener::Coordinator;

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
        /// Host and UDP port at which sites reach it; goes into invites
        #[arg(long, default_value = "127.0.0.1:7443", value_name = "HOST:PORT")]
        public_address: String,
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
        CoordinatorVerb::Init { home, listen, public_address } => {
            Home::init(&home, listen, &public_address)?;
            println!("made a federation in {}", home.display());
            println!("next: weighhouse coordinator serve --home {}", home.display());
            Ok(())
        }
        CoordinatorVerb::Serve { home, end_with_stdin } => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(async {
                let coordinator = Coordinator::start(&Home::at(&home))?;
                println!("listening on {}", coordinator.address());
                tokio::select! {
                    outcome = coordinator.run() => Ok(outcome?),
                    () = crate::client::asked_to_end(end_with_stdin) => Ok(()),
                }
            });
            runtime.shutdown_background();
            outcome
        }
    }
}
