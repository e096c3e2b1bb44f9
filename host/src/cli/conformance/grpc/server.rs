//! The server as a whole over gRPC: health, metadata, calls that are none.

use serde_json::json;

use super::{Grpc, NOT_FOUND, Reply, SERVICE, UNIMPLEMENTED, pb};
use crate::cli::conformance::check::{Check, Level, Problem, Verdict};
use crate::cli::conformance::server::Server;

const HEALTH: &str = "gRPC Health";

pub(in crate::cli::conformance) const CHECKS: &[Check<Server>] = &[
    Check {
        id: "grpc.live",
        level: Level::Required,
        section: HEALTH,
        says: "ServerLive answers that the server is live",
        run: |server| {
            let answer: pb::ServerLiveResponse = grpc(server)?.ok("ServerLive", &pb::ServerLiveRequest {})?;
            if answer.live { Ok(()) } else { Err(Problem::wrong("live", format!("{answer:?}"))) }
        },
    },
    Check {
        id: "grpc.ready",
        level: Level::Required,
        section: HEALTH,
        says: "ServerReady answers that the server is ready",
        run: |server| {
            let answer: pb::ServerReadyResponse =
                grpc(server)?.ok("ServerReady", &pb::ServerReadyRequest {})?;
            if answer.ready { Ok(()) } else { Err(Problem::wrong("ready", format!("{answer:?}"))) }
        },
    },
    Check {
        id: "grpc.metadata",
        level: Level::Required,
        section: "gRPC Metadata",
        says: "ServerMetadata answers what GET /v2 answers",
        run: |server| {
            let answer: pb::ServerMetadataResponse =
                grpc(server)?.ok("ServerMetadata", &pb::ServerMetadataRequest {})?;
            let over_http = server.metadata.clone().map_err(|problem| problem.elsewhere())?;
            let is_same = over_http["name"] == json!(answer.name)
                && over_http["version"] == json!(answer.version)
                && server.extensions().iter().all(|extension| answer.extensions.contains(extension));
            match is_same {
                true => Ok(()),
                false => Err(Problem::wrong(over_http.to_string(), format!("{answer:?}"))),
            }
        },
    },
    Check {
        id: "grpc.type",
        level: Level::Required,
        section: "gRPC over HTTP/2",
        says: "an answer has the content type application/grpc",
        run: |server| {
            let reply = raw(server, "ServerLive", &[], Vec::new())?;
            match reply.content_type.starts_with("application/grpc") {
                true => Ok(()),
                false => Err(Problem::wrong("application/grpc", reply.content_type)),
            }
        },
    },
    Check {
        id: "grpc.method.unknown",
        level: Level::Required,
        section: "gRPC over HTTP/2",
        says: "a method that is not there is UNIMPLEMENTED",
        run: |server| raw(server, "NoSuchMethod", &[], Vec::new())?.status.expect(UNIMPLEMENTED),
    },
    Check {
        id: "grpc.message.broken",
        level: Level::Required,
        section: "gRPC over HTTP/2",
        says: "bytes that are no message are refused",
        run: |server| raw(server, "ModelInfer", &[], vec![0xff; 64])?.status.refused(),
    },
    Check {
        id: "grpc.deadline.broken",
        level: Level::Advised,
        section: "gRPC over HTTP/2",
        says: "a deadline that is no time does no harm: the call is refused or answered",
        run: |server| {
            raw(server, "ServerLive", &[("grpc-timeout", "soon")], Vec::new())?;
            raw(server, "ServerLive", &[("grpc-timeout", "999999999999H")], Vec::new()).map(drop)
        },
    },
    Check {
        id: "grpc.health",
        level: Level::Extension,
        section: "grpc.health.v1",
        says: "the health service answers SERVING for the server as a whole",
        run: |server| {
            let reply = health(server, "")?;
            // The first field, an enumeration, with its value for serving.
            match reply.messages.first().is_some_and(|message| message.as_ref() == [8, 1]) {
                true => Ok(()),
                false => {
                    Err(Problem::wrong("SERVING", format!("{}: {:?}", reply.status.told(), reply.messages)))
                }
            }
        },
    },
    Check {
        id: "grpc.health.unknown",
        level: Level::Extension,
        section: "grpc.health.v1",
        says: "the health of a service that is not there is NOT_FOUND",
        run: |server| health(server, "tenon.NoSuchService")?.status.expect(NOT_FOUND),
    },
    Check {
        id: "grpc.reflection",
        level: Level::Extension,
        section: "grpc.reflection.v1",
        says: "reflection lists the protocol's service",
        run: |server| {
            // A request for the list of services: the seventh field, an empty text.
            let list = vec![0x3a, 0];
            let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
            let reply = grpc(server)?.exchange(path, &[], &[list])?;
            is_there(&reply)?;
            let name = SERVICE.trim_matches('/').as_bytes();
            let is_listed = |message: &bytes::Bytes| message.windows(name.len()).any(|part| part == name);
            match reply.messages.iter().any(is_listed) {
                true => Ok(()),
                false => Err(Problem::wrong(SERVICE.trim_matches('/'), reply.status.told())),
            }
        },
    },
    Check {
        id: "grpc.index",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "RepositoryIndex lists the models that the index over HTTP lists",
        run: |server| {
            let request = pb::RepositoryIndexRequest::default();
            let answer: pb::RepositoryIndexResponse =
                grpc(server)?.offered(server, "model_repository", "RepositoryIndex", &request)?;
            let mut over_http: Vec<_> = server.index()?.into_iter().map(|(name, _)| name).collect();
            let mut names: Vec<_> = answer.models.into_iter().map(|model| model.name).collect();
            over_http.sort();
            names.sort();
            if names == over_http {
                Ok(())
            } else {
                Err(Problem::wrong(over_http.join(", "), names.join(", ")))
            }
        },
    },
];

pub(in crate::cli::conformance) const AFTER: &[Check<Server>] = &[Check {
    id: "grpc.after.live",
    level: Level::Required,
    section: HEALTH,
    says: "after all that it was sent, the server is still live and ready",
    run: |server| {
        let _: pb::ServerLiveResponse = grpc(server)?.ok("ServerLive", &pb::ServerLiveRequest {})?;
        let answer: pb::ServerReadyResponse = grpc(server)?.ok("ServerReady", &pb::ServerReadyRequest {})?;
        if answer.ready { Ok(()) } else { Err(Problem::wrong("ready", format!("{answer:?}"))) }
    },
}];

/// The server's gRPC; a reason to skip where it has none.
pub(super) fn grpc(server: &Server) -> Result<&Grpc, Problem> {
    server.grpc.as_ref().map_err(Problem::elsewhere)
}

fn raw(server: &Server, method: &str, metadata: &[(&str, &str)], message: Vec<u8>) -> Result<Reply, Problem> {
    grpc(server)?.exchange(&format!("{SERVICE}{method}"), metadata, &[message])
}

/// What the health service answers for `service`: a message whose first field is that text.
fn health(server: &Server, service: &str) -> Result<Reply, Problem> {
    let mut request = Vec::new();
    if !service.is_empty() {
        request.extend([0x0a, u8::try_from(service.len()).unwrap_or(u8::MAX)]);
        request.extend(service.as_bytes());
    }
    let reply = grpc(server)?.exchange("/grpc.health.v1.Health/Check", &[], &[request])?;
    is_there(&reply)?;
    Ok(reply)
}

/// Skips where the service is not there.
fn is_there(reply: &Reply) -> Verdict {
    match reply.status.code {
        UNIMPLEMENTED => Err(Problem::skip("the server does not have this service")),
        _ => Ok(()),
    }
}
