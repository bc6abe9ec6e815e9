//! An operator's connection: one stream a request.

use crate::driver::Input;
use crate::session::{SessionError, Shared};
use quinn::{Connection, RecvStream, SendStream};
use std::sync::Arc;
use tokio::sync::oneshot;
use weighhouse_shared::wire::messages::{
    CoordinatorToOperator, JobEvent, OperatorToCoordinator, Refused, WatchJob,
};
use weighhouse_shared::wire::stream::{self, StreamError};

/// Serves one operator until its connection ends.
pub async fn serve(connection: Connection, shared: Arc<Shared>) -> Result<(), SessionError> {
    let mut requests = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            streams = connection.accept_bi() => {
                let (send, receive) = streams.map_err(StreamError::from)?;
                requests.spawn(answer(send, receive, shared.clone()));
            }
            Some(outcome) = requests.join_next() => {
                if let Ok(Err(error)) = outcome {
                    tracing::debug!(%error, "a request was cut off");
                }
            }
        }
    }
}

async fn answer(
    mut send: SendStream,
    mut receive: RecvStream,
    shared: Arc<Shared>,
) -> Result<(), SessionError> {
    let request = stream::receive::<OperatorToCoordinator>(&mut receive).await?;
    match request.ok_or(SessionError::Protocol)? {
        OperatorToCoordinator::WatchJob(WatchJob { job }) => {
            let (reply, answer) = oneshot::channel();
            shared.inbox.send(Input::Watch { job, reply }).await.map_err(|_| SessionError::Closing)?;
            match answer.await.map_err(|_| SessionError::Closing)? {
                None => {
                    let reason = format!("there is no job {}; `weighhouse job list` shows all", job.short());
                    stream::send(&mut send, &CoordinatorToOperator::Refused(Refused { reason })).await?;
                }
                Some((past, mut events)) => {
                    for event in past {
                        stream::send(&mut send, &CoordinatorToOperator::Progress(event)).await?;
                    }
                    while let Some(event) = events.recv().await {
                        let last = matches!(&event, JobEvent::Status(status) if status.is_final());
                        stream::send(&mut send, &CoordinatorToOperator::Progress(event)).await?;
                        if last {
                            break;
                        }
                    }
                }
            }
        }
        request => {
            let (reply, answer) = oneshot::channel();
            shared.inbox.send(Input::Request { request, reply }).await.map_err(|_| SessionError::Closing)?;
            let (message, content) = answer.await.map_err(|_| SessionError::Closing)?;
            stream::send(&mut send, &message).await?;
            if let Some(content) = content {
                send.write_chunk(content).await.map_err(StreamError::from)?;
            }
        }
    }
    let _ = send.finish();
    Ok(())
}
