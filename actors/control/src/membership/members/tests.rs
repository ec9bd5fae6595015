use planaria_protocol::capabilities::Capabilities;
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::state::SequenceCounts;
use planaria_protocol::wire::features::Features;

use super::*;

fn life(byte: u8, boot_count: u64) -> Incarnation {
    Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count }
}

fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

fn report(name: &str) -> Report {
    Report {
        name: name.to_owned(),
        features: Features::understood(),
        pid: 1,
        port: 8421,
        api: None,
        memory_bytes: 1,
        pins: BTreeMap::new(),
        desired: DesiredMap::default(),
        models: Vec::new(),
        unusable: Vec::new(),
        shards: Vec::new(),
        plans: Vec::new(),
        highest_epoch: None,
        sequences: SequenceCounts::default(),
        neighbours: Vec::new(),
        capabilities: Capabilities::default(),
        leaving: false,
        restarts: BTreeMap::new(),
        generated_tokens: 0,
        running: Some(Vec::new()),
    }
}

struct Scene {
    now: Instant,
    members: Members,
    view: View,
}

impl Scene {
    fn new() -> Self {
        let members = Members::new(life(0, 1), address(1));
        let mut scene = Self { now: Instant::now(), members, view: View::default() };
        scene.take(MembersEvent::Own(report("me")));
        scene
    }

    fn take(&mut self, event: MembersEvent) {
        if let Some(view) = self.members.on(self.now, event) {
            self.view = view;
        }
    }

    fn joins(&mut self, life: Incarnation) {
        self.take(MembersEvent::LinkUp(life, address(2)));
        self.take(MembersEvent::Reported(life, report("peer")));
        self.take(MembersEvent::Became(life, NodeState::Alive));
    }

    fn state(&self, byte: u8) -> Option<(u64, NodeState)> {
        let (life, state) = self.view.state_of(life(byte, 0).node)?;
        Some((life.boot_count, state))
    }
}

#[test]
fn alive_is_who_answers_is_linked_and_has_reported() {
    let all = [
        MembersEvent::LinkUp(life(1, 1), address(2)),
        MembersEvent::Reported(life(1, 1), report("peer")),
        MembersEvent::Became(life(1, 1), NodeState::Alive),
    ];
    for missing in 0..3 {
        let mut scene = Scene::new();
        let some = all.iter().enumerate().filter(|(at, _)| *at != missing);
        some.for_each(|(_, event)| scene.take(event.clone()));
        assert_eq!(scene.state(1), None, "{missing}");
    }
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    assert_eq!(scene.state(1), Some((1, NodeState::Alive)));
    assert_eq!(scene.view.member(life(1, 1).node).unwrap().address, address(8421));
}

#[test]
fn a_suspect_keeps_its_place_and_the_dead_does_not() {
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    let before = scene.view.clone();
    scene.take(MembersEvent::Became(life(1, 1), NodeState::Suspect));
    assert_eq!(scene.state(1), Some((1, NodeState::Suspect)));
    assert!(scene.view.is_alive(life(1, 1)) && !scene.view.is_dead(life(1, 1)));
    assert_eq!(scene.view.placement_facts(), before.placement_facts());
    for over in [NodeState::Down, NodeState::Left] {
        scene.take(MembersEvent::Became(life(1, 1), over));
        assert_eq!(scene.state(1), Some((1, over)));
        assert!(!scene.view.is_alive(life(1, 1)) && scene.view.is_dead(life(1, 1)));
        assert_ne!(scene.view.placement_facts(), before.placement_facts());
    }
    // Taken for dead, and back.
    scene.take(MembersEvent::Became(life(1, 1), NodeState::Alive));
    assert!(scene.view.is_alive(life(1, 1)) && !scene.view.is_dead(life(1, 1)));
}

#[test]
fn without_a_link_a_member_is_suspect_and_after_a_while_left_out() {
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    scene.take(MembersEvent::LinkDown(life(1, 1)));
    assert_eq!(scene.state(1), Some((1, NodeState::Suspect)));
    // Nothing can be sent to it, but it keeps its place.
    assert!(scene.view.is_dead(life(1, 1)) && scene.view.is_alive(life(1, 1)));
    scene.now += CUT_OFF;
    scene.take(MembersEvent::Tick);
    assert_eq!(scene.state(1), Some((1, NodeState::Suspect)));
    assert!(!scene.view.is_alive(life(1, 1)));
    scene.take(MembersEvent::LinkUp(life(1, 1), address(2)));
    assert_eq!(scene.state(1), Some((1, NodeState::Alive)));
    assert!(scene.view.is_alive(life(1, 1)) && !scene.view.is_dead(life(1, 1)));
}

#[test]
fn a_new_life_ends_the_former_one_at_once() {
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    scene.take(MembersEvent::LinkUp(life(1, 2), address(3)));
    assert_eq!(scene.state(1), Some((1, NodeState::Down)));
    scene.take(MembersEvent::Reported(life(1, 2), report("peer")));
    assert_eq!(scene.state(1), Some((1, NodeState::Down)));
    scene.take(MembersEvent::Became(life(1, 2), NodeState::Alive));
    assert_eq!(scene.state(1), Some((2, NodeState::Alive)));
    assert!(scene.view.is_dead(life(1, 1)));
}

#[test]
fn a_ghost_cannot_come_back() {
    let mut scene = Scene::new();
    scene.joins(life(1, 2));
    let before = scene.view.clone();
    scene.joins(life(1, 1));
    scene.take(MembersEvent::LinkDown(life(1, 1)));
    scene.take(MembersEvent::Became(life(1, 1), NodeState::Down));
    assert_eq!(scene.view, before);
}

#[test]
fn the_dead_are_forgotten_in_the_end_and_when_they_are_many() {
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    scene.take(MembersEvent::Became(life(1, 1), NodeState::Down));
    scene.now += FORGET / 2;
    scene.take(MembersEvent::Tick);
    assert_eq!(scene.state(1), Some((1, NodeState::Down)));
    scene.now += FORGET / 2;
    scene.take(MembersEvent::Tick);
    assert_eq!(scene.state(1), None);

    let node = |at: u16| {
        let mut digest = [9; 32];
        digest[..2].copy_from_slice(&at.to_be_bytes());
        Incarnation { node: NodeId::from_bytes(digest), boot_count: 1 }
    };
    let many = u16::try_from(MAX_OVER).unwrap() + 10;
    for at in 0..many {
        scene.joins(node(at));
        scene.now += Duration::from_millis(1);
        scene.take(MembersEvent::Became(node(at), NodeState::Down));
    }
    scene.take(MembersEvent::Tick);
    assert_eq!(scene.view.all().count(), MAX_OVER + 1, "and this node");
    assert!(scene.view.state_of(node(9).node).is_none());
    assert!(scene.view.state_of(node(10).node).is_some());
}

#[test]
fn a_node_whose_data_folder_was_emptied_ends_the_one_that_it_was() {
    let mut scene = Scene::new();
    let joins_at = |scene: &mut Scene, life, port| {
        scene.take(MembersEvent::LinkUp(life, address(port)));
        scene.take(MembersEvent::Reported(life, report("studio")));
        scene.take(MembersEvent::Became(life, NodeState::Alive));
    };
    joins_at(&mut scene, life(99, 1), 3);
    for byte in 1..=10 {
        joins_at(&mut scene, life(byte, 1), 2);
        if byte > 1 {
            // It is there before anybody has missed the former one, whose link ends of silence.
            scene.take(MembersEvent::LinkDown(life(byte - 1, 1)));
            assert!(scene.view.is_dead(life(byte - 1, 1)));
            assert_eq!(scene.state(byte - 1), Some((1, NodeState::Down)));
        }
        let listed: Vec<_> = scene.view.listed().map(|member| member.incarnation).collect();
        assert_eq!(listed, [life(0, 1), life(byte, 1), life(99, 1)]);
    }
    // The last one stays over when the place is empty.
    scene.take(MembersEvent::LinkDown(life(10, 1)));
    scene.take(MembersEvent::Became(life(10, 1), NodeState::Down));
    assert_eq!(scene.view.listed().count(), 3);
    // The other order: it was missed, and then there is another.
    joins_at(&mut scene, life(11, 1), 2);
    assert_eq!(scene.view.listed().count(), 3);
    // One of them moved in truth, and is back from elsewhere.
    joins_at(&mut scene, life(5, 1), 7);
    assert_eq!(scene.state(5), Some((1, NodeState::Alive)));
    assert_eq!(scene.view.listed().count(), 4);
}

#[test]
fn names_tell_members_apart() {
    let mut scene = Scene::new();
    scene.joins(life(1, 1));
    assert_eq!(scene.view.name(life(1, 1).node), "peer");
    scene.joins(life(2, 1));
    assert_eq!(scene.view.name(life(1, 1).node), "peer-0101010101");
    assert_eq!(scene.view.name(life(2, 1).node), "peer-0202020202");
    assert_eq!(scene.view.name(life(0, 1).node), "me");
    assert_eq!(scene.view.name(life(3, 1).node), "0303030303");
}

#[test]
fn a_link_to_a_process_is_left_when_the_cluster_has_a_later_one() {
    let mut scene = Scene::new();
    scene.joins(life(1, 5));
    assert_eq!(scene.members.overtaken().next(), None);
    // Others are linked to a copy of it.
    scene.take(MembersEvent::Became(life(1, 6), NodeState::Alive));
    assert_eq!(scene.members.overtaken().collect::<Vec<_>>(), [life(1, 5)]);
    scene.take(MembersEvent::LinkUp(life(1, 6), address(4)));
    assert_eq!(scene.members.overtaken().next(), None);
}
