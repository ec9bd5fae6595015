//! Models in company: one that comes or goes is no reason to load the others anew.

use super::*;

/// A member that has the files of so many models, whose layers take 10 MiB each, none of which is wanted yet.
fn member_of_many(byte: u8, memory: u64, models: usize, layers: usize) -> Member {
    let mut member = member(byte, 1, memory);
    let report = Arc::make_mut(&mut member.report);
    report.desired = DesiredMap::granted(id(byte), []);
    let mut held = report.models.remove(0);
    held.geometry.bytes_per_layer.truncate(layers);
    report.models = (0..models).map(|n| HeldModel { name: name(n), ..held.clone() }).collect();
    member
}

fn name(number: usize) -> ModelName {
    format!("m-{number}").parse().unwrap()
}

fn want(members: &mut [Member], at: u64, number: usize, wanted: Option<DesiredSpec>) {
    let stamp = Clock::new(id(1)).tick(at, None);
    for member in members {
        Arc::make_mut(&mut member.report).desired.put(&name(number), Entry { stamp, wanted });
    }
}

impl Cluster {
    fn settle(&mut self, members: &[Member]) {
        self.see(members);
        self.pass(TIMEOUTS.settle);
        // A plan that is in force is a reason to look again.
        self.pass(TIMEOUTS.settle);
    }

    fn epoch(&self, number: usize) -> Option<Epoch> {
        self.schedulers[&id(1)].plan(&name(number)).map(Plan::epoch)
    }
}

#[test]
fn models_that_come_and_go_leave_the_others_where_they_are() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let mut members = [1, 2, 3].map(|byte| member_of_many(byte, 600, 6, 2));
    for number in 0..5 {
        want(&mut members, 1, number, Some(DesiredSpec::default()));
    }
    cluster.settle(&members);
    let before: Vec<_> = (1..5).map(|number| cluster.epoch(number).unwrap()).collect();
    let others = |cluster: &Cluster| (1..5).map(|n| cluster.epoch(n).unwrap()).collect::<Vec<_>>();
    for round in 1..6 {
        want(&mut members, 2 * round, 0, None);
        want(&mut members, 2 * round, 5, Some(DesiredSpec::default()));
        cluster.settle(&members);
        assert_eq!(others(&cluster), before, "one was removed, one added");
        assert!(cluster.epoch(0).is_none() && cluster.epoch(5).is_some());
        want(&mut members, 2 * round + 1, 0, Some(DesiredSpec::default()));
        want(&mut members, 2 * round + 1, 5, None);
        cluster.settle(&members);
        assert_eq!(others(&cluster), before, "and the other way round");
        assert!(cluster.epoch(0).is_some() && cluster.epoch(5).is_none());
    }
    // Another member is a reason: it takes its share.
    let mut all = members.to_vec();
    all.push(member_of_many(4, 600, 6, 2));
    for number in 0..5 {
        want(&mut all, 100, number, Some(DesiredSpec::default()));
    }
    let newcomer = Scheduler::new(id(4), SIZING, TIMEOUTS, &[]);
    cluster.schedulers.insert(id(4), newcomer);
    cluster.settle(&all);
    let plans = cluster.schedulers[&id(1)].plans();
    assert!(plans.flat_map(Plan::nodes).any(|node| node == id(4)));
}

/// A failover plan knows nothing of who has come since.
#[test]
fn who_comes_while_another_is_lost_gets_its_share() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4]);
    let mut members = [1, 2, 3, 4].map(|byte| member(byte, 1, 200));
    members[3].state = NodeState::Down;
    cluster.settle(&members);
    let stages = |cluster: &Cluster| {
        cluster.schedulers[&id(1)].plan(&model()).map_or(0, |plan| plan.stages().len())
    };
    assert_eq!(stages(&cluster), 3);
    (members[2].state, members[3].state) = (NodeState::Down, NodeState::Alive);
    members[3].incarnation.boot_count = 2;
    cluster.settle(&members);
    assert_eq!(stages(&cluster), 3);
}

/// Who came first has memory on both members; the other one's layers fit on no more than what is left of them if
/// all are dealt out anew.
#[test]
fn a_model_that_finds_no_room_beside_the_others_has_them_make_room() {
    let mut cluster = Cluster::new(&[1, 2]);
    // A few KiB of each are for what a sequence needs.
    let mut members = [1, 2].map(|byte| member_of_many(byte, 151, 2, 12));
    want(&mut members, 1, 1, Some(DesiredSpec::default()));
    Arc::make_mut(&mut members[1].report).models.retain(|held| held.name == name(1));
    cluster.settle(&members);
    let alone = cluster.schedulers[&id(1)].plan(&name(1)).unwrap().clone();
    assert_eq!(alone.stages().len(), 2, "{alone}");
    // Only the first member has its files.
    want(&mut members, 2, 0, Some(DesiredSpec::default()));
    cluster.settle(&members);
    let plans = [0, 1].map(|n| cluster.schedulers[&id(1)].plan(&name(n)).cloned());
    let [Some(newcomer), Some(other)] = plans else {
        panic!("{:?}", [0, 1].map(|n| cluster.schedulers[&id(1)].obstacle(&name(n))));
    };
    assert_eq!(newcomer.stages()[0].incarnation.node, id(1), "{newcomer}");
    assert!(other.epoch() > alone.epoch(), "{other}");
}
