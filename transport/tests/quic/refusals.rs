//! Peers that are not let in: both sides say why in words, and a good peer still gets in.

use std::time::Duration;

use planaria_transport::{
    Endpoint, Identity, Lane, Limits, Party, Refusal, Refused, decode_message,
};
use serde::{Deserialize, Serialize};

use crate::support::{
    Authority, Certified, HELLO, RawHello, config, credentials, frame, link, next, node, number,
    raw_client, raw_connect, raw_greet, raw_read, raw_server, soon, stream_header,
};

async fn refused(endpoint: &Endpoint) -> Refused {
    soon(endpoint.accept()).await.unwrap().expect_err("it was let in")
}

async fn lets_in(endpoint: &Endpoint, good: &Endpoint) {
    let (at_good, here) = link(good, endpoint).await;
    let (sender, _from_here) = at_good.split();
    let (_to_good, mut receiver) = here.split();
    sender.try_send(Lane::Control, frame(3)).unwrap();
    assert_eq!(number(&next(&mut receiver).await), 3);
}

#[tokio::test]
async fn another_cluster_key() {
    let (here, stranger, good) = (node(1, "here"), node(2, "stranger"), node(1, "good"));
    let error = soon(stranger.dial(here.local_addr())).await.unwrap_err();
    assert_eq!(error.refusal, Refusal::OtherCluster { by: Party::Us });
    assert_eq!(error.address, here.local_addr());
    let words = error.to_string();
    assert!(words.contains("its certificate was not signed by this cluster's key"), "{words}");
    let refused = refused(&here).await;
    assert_eq!(refused.refusal, Refusal::OtherCluster { by: Party::Peer });
    assert_eq!((refused.address, refused.node), (stranger.local_addr(), None));
    let words = refused.to_string();
    assert!(words.contains(&stranger.local_addr().to_string()), "{words}");
    assert!(words.contains("our certificate was not signed by its cluster's key"), "{words}");
    lets_in(&here, &good).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_on_a_caller_that_trusts_ours() {
    let (ours, other) = (Authority::new(), Authority::new());
    let here = ours.node("here");
    let client = raw_client(&ours, Some(&other.certify()), "planaria/1");
    let connection = raw_connect(&client, &here).await;
    let refused = refused(&here).await;
    assert_eq!(refused.refusal, Refusal::OtherCluster { by: Party::Us });
    soon(connection.closed()).await;
    lets_in(&here, &ours.node("good")).await;
}

#[tokio::test]
async fn no_certificate() {
    let ours = Authority::new();
    let here = ours.node("here");
    let client = raw_client(&ours, None, "planaria/1");
    // The catch: for the caller this looks like success.
    let connection = raw_connect(&client, &here).await;
    let refused = refused(&here).await;
    assert_eq!(refused.refusal, Refusal::NoCertificate { by: Party::Us });
    assert!(refused.to_string().ends_with("it showed no certificate"), "{refused}");
    soon(connection.closed()).await;
    lets_in(&here, &ours.node("good")).await;
}

#[tokio::test]
async fn a_dialer_learns_after_tls_that_it_was_refused() {
    let (ours, other) = (Authority::new(), Authority::new());
    let here = ours.node("here");
    // It shows a certificate that we trust, and does not trust ours.
    let server = raw_server(&ours.certify(), &other, "planaria/1");
    let address = server.local_addr().unwrap();
    let serve = tokio::spawn(async move { server.accept().await.unwrap().await.map(|_| ()) });
    let error = soon(here.dial(address)).await.unwrap_err();
    assert_eq!(error.refusal, Refusal::OtherCluster { by: Party::Peer });
    assert!(serve.await.unwrap().is_err());
}

#[tokio::test]
async fn another_protocol_in_tls() {
    let ours = Authority::new();
    let here = ours.node("here");
    let stranger = ours.certify();
    let client = raw_client(&ours, Some(&stranger), "planaria/2");
    let connecting = client.connect(here.local_addr(), planaria_transport::CERTIFICATE_NAME);
    assert!(soon(connecting.unwrap()).await.is_err());
    let refused = refused(&here).await;
    assert!(matches!(refused.refusal, Refusal::OtherProtocol { by: Party::Us, .. }));
    let words = refused.to_string();
    assert!(words.contains("another protocol version than ours (planaria/1)"), "{words}");

    let server = raw_server(&stranger, &ours, "planaria/2");
    let address = server.local_addr().unwrap();
    let serve = tokio::spawn(async move { server.accept().await.unwrap().await.map(|_| ()) });
    let error = soon(here.dial(address)).await.unwrap_err();
    assert!(matches!(error.refusal, Refusal::OtherProtocol { by: Party::Peer, .. }), "{error}");
    assert!(error.to_string().contains("does not speak our protocol version"), "{error}");
    assert!(serve.await.unwrap().is_err());
    lets_in(&here, &ours.node("good")).await;
}

/// The answer to a greeting, written down a second time: it is the protocol.
#[derive(Debug, Serialize, Deserialize)]
enum RawAck {
    Refused { code: u64, reason: String },
}

#[tokio::test]
async fn another_version_in_the_greeting() {
    let ours = Authority::new();
    let here = ours.node("here");
    let stranger = ours.certify();
    let client = raw_client(&ours, Some(&stranger), "planaria/1");
    let connection = raw_connect(&client, &here).await;
    let (_sending, mut receiving) = raw_greet(&connection, &RawHello { major: 2, ..HELLO }).await;
    let ack: RawAck = decode_message(&raw_read(&mut receiving).await.header).unwrap();
    let RawAck::Refused { code, reason } = ack;
    assert_eq!((code, &reason[..]), (17, "the greeting is of version 2, not 1"));
    connection.close(0_u8.into(), b"");
    let refused = refused(&here).await;
    assert!(matches!(refused.refusal, Refusal::OtherProtocol { by: Party::Us, .. }));
    assert_eq!(refused.node, Some(stranger.identity.node_id()));
    lets_in(&here, &ours.node("good")).await;
}

/// Accepts one connection, reads the greeting, answers with `ack`.
async fn answer_with<T: Serialize>(server: quinn::Endpoint, ack: T) {
    let connection = server.accept().await.unwrap().await.unwrap();
    let (mut sending, mut receiving) = connection.accept_bi().await.unwrap();
    let mut header = [0; 9];
    receiving.read_exact(&mut header).await.unwrap();
    raw_read(&mut receiving).await;
    let ack = planaria_transport::Frame::message(planaria_transport::encode_message(&ack).unwrap());
    sending.write_all(&crate::support::wire(&ack)).await.unwrap();
    connection.closed().await;
}

#[tokio::test]
async fn a_refusing_answer_reaches_the_dialer() {
    let ours = Authority::new();
    let here = ours.node("here");
    let dial = async |code: u64, reason: &str| {
        let server = raw_server(&ours.certify(), &ours, "planaria/1");
        let address = server.local_addr().unwrap();
        let ack = RawAck::Refused { code, reason: reason.to_owned() };
        let serve = tokio::spawn(answer_with(server, ack));
        let error = soon(here.dial(address)).await.unwrap_err();
        soon(serve).await.unwrap();
        error.refusal
    };
    assert_eq!(
        dial(17, "I speak 2").await,
        Refusal::OtherProtocol { by: Party::Peer, detail: "I speak 2".to_owned() }
    );
    let refusal = dial(99, "maintenance\nuntil noon").await;
    assert_eq!(refusal.to_string(), "it declined: maintenance until noon");
    let server = raw_server(&ours.certify(), &ours, "planaria/1");
    let address = server.local_addr().unwrap();
    tokio::spawn(answer_with(server, "what?"));
    let error = soon(here.dial(address)).await.unwrap_err();
    assert!(matches!(error.refusal, Refusal::MalformedHello { by: Party::Us, .. }), "{error}");
}

#[tokio::test]
async fn malformed_greetings() {
    let ours = Authority::new();
    let here = ours.node("here");
    let oversize = (u32::MAX).to_be_bytes().to_vec();
    let control = stream_header(0, 0);
    let cases: [(Vec<u8>, &str); 5] = [
        ([control.clone(), oversize].concat(), "a frame of 4294967295 bytes is over the cap"),
        ([control.clone(), vec![0, 0, 0, 1]].concat(), "claims a length of 1 bytes"),
        ([control, vec![0, 0, 0, 5, 0, 0, 0, 1, 0xc0]].concat(), "not the expected message"),
        (stream_header(1, 4), "it began with the activation lane"),
        (stream_header(77, 0), "a stream of unknown class 77"),
    ];
    for (bytes, words) in cases {
        let client = raw_client(&ours, Some(&ours.certify()), "planaria/1");
        let connection = raw_connect(&client, &here).await;
        let (mut sending, _receiving) = connection.open_bi().await.unwrap();
        sending.write_all(&bytes).await.unwrap();
        let refused = refused(&here).await;
        assert!(matches!(refused.refusal, Refusal::MalformedHello { by: Party::Us, .. }));
        assert!(refused.to_string().contains(words), "`{refused}` lacks `{words}`");
        soon(connection.closed()).await;
    }
    lets_in(&here, &ours.node("good")).await;
}

#[tokio::test]
async fn a_caller_that_says_nothing_delays_nobody_and_is_dropped() {
    let ours = Authority::new();
    let mut impatient = config("here");
    impatient.limits = Limits { handshake: Duration::from_secs(2), ..impatient.limits };
    let here = ours.node_with(impatient);
    let good = ours.node("good");
    let client = raw_client(&ours, Some(&ours.certify()), "planaria/1");
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(raw_connect(&client, &here).await);
    }
    lets_in(&here, &good).await;
    for connection in silent {
        let refused = refused(&here).await;
        assert_eq!(refused.refusal, Refusal::TimedOut { after: Duration::from_secs(2) });
        assert!(refused.to_string().ends_with("no answer within 2s"), "{refused}");
        soon(connection.closed()).await;
    }
}

#[tokio::test]
async fn too_many_handshakes_from_one_address_are_turned_away() {
    let ours = Authority::new();
    let (here, good) = (ours.node("here"), ours.node("good"));
    let client = raw_client(&ours, Some(&ours.certify()), "planaria/1");
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(raw_connect(&client, &here).await);
    }
    let error = soon(good.dial(here.local_addr())).await.unwrap_err();
    assert_eq!(error.refusal, Refusal::Busy);
    assert!(error.to_string().contains("trying again will help"), "{error}");
    silent[0].close(0_u8.into(), b"gave up");
    assert!(refused(&here).await.to_string().contains("it declined: gave up"));
    lets_in(&here, &good).await;
}

#[tokio::test]
async fn nobody_there() {
    let mut impatient = config("here");
    impatient.limits.handshake = Duration::from_millis(300);
    let identity = Identity::generate().unwrap();
    let here = Endpoint::bind(&credentials(1, &identity), impatient).unwrap();
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = soon(here.dial(mute.local_addr().unwrap())).await.unwrap_err();
    assert_eq!(error.refusal, Refusal::TimedOut { after: Duration::from_millis(300) });
    let error = soon(here.dial("[2001:db8::1]:1".parse().unwrap())).await.unwrap_err();
    assert!(matches!(error.refusal, Refusal::Failed { .. }), "{error}");
}

#[tokio::test]
async fn oneself_and_ones_double() {
    let identity = Identity::generate().unwrap();
    let bind = |name| Endpoint::bind(&credentials(1, &identity), config(name)).unwrap();
    let (here, double) = (bind("here"), bind("double"));
    for dialer in [&here, &double] {
        let error = soon(dialer.dial(here.local_addr())).await.unwrap_err();
        assert_eq!(error.refusal, Refusal::SameIdentity);
        assert!(error.to_string().contains("data directory was copied"), "{error}");
        assert_eq!(refused(&here).await.refusal, Refusal::SameIdentity);
    }
    lets_in(&here, &node(1, "good")).await;
}

/// A process that runs with an identity, as of a boot.
fn life(identity: &Identity, name: &str, boot_count: u64) -> Endpoint {
    let mut config = config(name);
    config.hello.boot_count = boot_count;
    Endpoint::bind(&credentials(1, identity), config).unwrap()
}

#[tokio::test]
async fn of_two_processes_with_one_identity_the_one_that_is_linked_stays() {
    let (here, identity) = (node(1, "here"), Identity::generate().unwrap());
    let first = life(&identity, "first", 5);
    let (at_first, at_here) = link(&first, &here).await;
    let copies = [5, 6, 4].map(|boot_count| life(&identity, "copy", boot_count));
    for copy in &copies {
        let error = soon(copy.dial(here.local_addr())).await.unwrap_err();
        assert!(matches!(error.refusal, Refusal::Twin { by: Party::Peer, .. }), "{error}");
        assert!(error.to_string().contains(&first.local_addr().to_string()), "{error}");
        let refused = refused(&here).await;
        assert!(matches!(refused.refusal, Refusal::Twin { by: Party::Us, .. }), "{refused}");
        let error = soon(here.dial(copy.local_addr())).await.unwrap_err();
        assert!(matches!(error.refusal, Refusal::Twin { by: Party::Us, .. }), "{error}");
    }
    // Another link of the same process is no twin.
    let again = link(&first, &here).await;
    let (at_first, mut received) = at_first.split();
    let (at_here, mut sent) = at_here.split();
    at_here.try_send(Lane::Control, frame(7)).unwrap();
    assert_eq!(number(&next(&mut received).await), 7);
    at_first.try_send(Lane::Control, frame(8)).unwrap();
    assert_eq!(number(&next(&mut sent).await), 8);
    // Once it has ended, another may have its place.
    drop((again, received, sent));
    soon(at_first.closed()).await;
    soon(at_here.closed()).await;
    let (_, at_here) = link(&copies[0], &here).await;
    assert_eq!(at_here.peer().name, "copy");
}

#[tokio::test]
async fn a_node_that_was_killed_and_started_again_is_let_in_while_its_former_link_still_stands() {
    let (here, identity) = (node(1, "here"), Identity::generate().unwrap());
    let (at, copied) = (here.local_addr(), identity.clone());
    // With its runtime gone it says nothing any more, not even that it closes.
    let process = tokio::runtime::Runtime::new().unwrap();
    let linking = process.spawn(async move {
        let former = life(&copied, "former", 5);
        let link = former.dial(at).await.unwrap();
        (former, link)
    });
    let at_former = soon(here.accept()).await.unwrap().unwrap();
    let former = soon(linking).await.unwrap();
    process.shutdown_background();
    let (_, at_here) = link(&life(&identity, "again", 6), &here).await;
    assert_eq!((at_here.peer().name.as_str(), at_here.peer().incarnation.boot_count), ("again", 6));
    let (former_link, _receiver) = at_former.split();
    let still_stands = tokio::time::timeout(Duration::ZERO, former_link.closed()).await.is_err();
    assert!(still_stands, "its silence was not waited for");
    std::mem::forget(former);
}

#[tokio::test]
async fn the_certificate_says_who_it_is() {
    let ours = Authority::new();
    let here = ours.node("here");
    let Certified { identity, .. } = &ours.certify();
    let stranger = ours.certify();
    let client = raw_client(&ours, Some(&stranger), "planaria/1");
    let connection = raw_connect(&client, &here).await;
    // Whatever else it claims in its greeting is not looked at.
    #[derive(Serialize)]
    struct Liar {
        #[serde(flatten)]
        hello: RawHello,
        node: String,
    }
    let liar = Liar { hello: HELLO, node: identity.node_id().to_string() };
    let _streams = raw_greet(&connection, &liar).await;
    let link = soon(here.accept()).await.unwrap().unwrap();
    assert_eq!(link.peer().incarnation.node, stranger.identity.node_id());
    assert_eq!((link.peer().incarnation.boot_count, &link.peer().name[..]), (9, "raw"));
}
