use std::time::Duration;

use planaria_gateway::stored_answers::StoredAnswers;
use tokio::time::timeout;

use super::*;
use crate::membership::MembershipMessage;
use crate::parts::testing::parts;

#[tokio::test]
async fn a_part_that_is_killed_is_started_again_with_all_that_were_started_after_it() {
    let parts = Arc::new(parts("here", 1));
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    api.set_nonblocking(true).unwrap();
    let stored = StoredAnswers::open(parts.store.clone(), 1 << 20).unwrap();
    let gateway = parts.for_gateway(stored, None, 16);
    let api_threads = tokio::runtime::Handle::current();
    let args = NodeArgs { parts: Arc::clone(&parts), api, api_threads, gateway };
    let mut node = Node::start(args).await.unwrap();
    let mut view = parts.view.subscribe();
    let there = view.wait_for(|view| view.is_alive(parts.me));
    timeout(Duration::from_secs(30), there).await.expect("in time").unwrap();
    let membership = parts.handles.membership.0.clone();
    let former = membership.get().unwrap();
    let after = parts.handles.scheduler.0.get().unwrap();
    let before = parts.handles.links.0.get().unwrap();
    former.kill();
    let again = async {
        while parts.restarts.all().is_empty()
            || membership.get().is_some_and(|now| now.get_id() == former.get_id())
            || parts.handles.scheduler.0.get().unwrap().get_id() == after.get_id()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), again).await.expect("started again");
    assert_eq!(parts.restarts.all()["membership"], 1);
    assert_eq!(parts.handles.links.0.get().unwrap().get_id(), before.get_id());
    membership.get().unwrap().cast(MembershipMessage::Beat).unwrap();
    node.stop();
    assert_eq!(timeout(Duration::from_secs(60), node.ended()).await, Ok(Outcome::Stopped));
}
