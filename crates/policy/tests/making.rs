//! Datasets that are no folder: what is read of them, and what is refused.

use std::path::Path;

use policy::{
    DatabaseEngine, DeclaredSource, Expect, Gives, Images, Making, Place, Secret, Source,
    VolumeSeen,
};

const HEAD: &str = "[store.sda]\nkind = \"disk\"\npath = \"/mnt/sda\"\n\
                    [root.\"/srv\"]\neach = \"dir\"\nroute = [\"sda\"]\n";

fn config(dataset: &str) -> policy::Config {
    match policy::parse(Path::new("thrice.toml"), &format!("{HEAD}{dataset}")) {
        Ok((config, _)) => config,
        Err(report) => panic!("{}", report.render(false)),
    }
}

fn made(dataset: &str) -> Making {
    match &config(dataset).datasets[0].what {
        DeclaredSource::Made(made) => made.what.clone(),
        other => panic!("{other:?}"),
    }
}

fn refused(dataset: &str) -> String {
    match policy::parse(Path::new("thrice.toml"), &format!("{HEAD}{dataset}")) {
        Ok(_) => panic!("was taken: {dataset}"),
        Err(report) => report.render(false),
    }
}

#[test]
fn a_database_has_a_url_a_place_and_a_secret_that_is_elsewhere() {
    let Making::Database(spec) = made(
        "[dataset.a]\npostgres = \"postgresql:///a?host=/run/postgresql\"\n\
         password_file = \"/etc/pg\"\nat = \"pod:db/sts/pg/main\"\ndatabases = [\"x\"]\n",
    ) else {
        panic!("no database");
    };
    assert_eq!(spec.engine, DatabaseEngine::Postgres);
    assert_eq!(spec.secret, Some(Secret::File("/etc/pg".into())));
    let place = Place::Pod {
        namespace: "db".into(),
        pod: "sts/pg".into(),
        container: Some("main".into()),
    };
    assert_eq!((spec.place, spec.databases), (place, vec!["x".to_owned()]));
}

#[test]
fn what_is_made_goes_where_the_first_root_goes_unless_it_says_otherwise() {
    let route = |dataset: &str| config(dataset).datasets[0].route.clone();
    assert_eq!(route("[dataset.a]\nhost = true\n"), ["sda"]);
    let why = "[dataset.a]\nhost = true\nroute = []\nwhy = \"elsewhere\"\n";
    assert!(route(why).is_empty());
}

#[test]
fn what_a_device_gives_is_expected_by_its_name() {
    let Making::Device(spec) = made(
        "[dataset.fw]\nssh = \"root@10.0.0.1\"\n\
         files = [\"/cf/conf/config.xml\", { path = \"/x\", contains = \"y\" }]\n\
         outputs = { \"a.tgz\" = { command = \"tar\", on = \"Sun\" }, \"b\" = \"show\" }\n",
    ) else {
        panic!("no device");
    };
    assert_eq!(spec.files[0].expect, Expect::Xml(None));
    assert_eq!(spec.files[1].expect, Expect::Contains("y".into()));
    let on: Vec<bool> = spec.outputs.iter().map(|one| one.on.is_some()).collect();
    assert_eq!(
        (&spec.outputs[0].expect, on),
        (&Expect::Gzip, vec![true, false])
    );
}

#[test]
fn a_command_gives_a_file_or_a_folder() {
    let gives = |more: &str| match made(&format!("[dataset.a]\ncommand = [\"x\"]\n{more}")) {
        Making::Command(spec) => spec.gives,
        other => panic!("{other:?}"),
    };
    assert_eq!(gives(""), Gives::Output("a".into()));
    assert_eq!(gives("output = \"b.json\""), Gives::Output("b.json".into()));
    assert_eq!(gives("folder = true"), Gives::Folder);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (dataset, word) in [
        ("postgres = \"postgresql://u:secret@h/a\"", "password"),
        ("postgres = \"mysql://h/a\"", "not the server's URL"),
        (
            "postgres = \"postgresql:///a\"\ntoken_file = \"/x\"",
            "means nothing here",
        ),
        (
            "postgres = \"postgresql:///a\"\nmysql = \"mysql://h\"",
            "has both",
        ),
        (
            "postgres = \"postgresql:///a\"\npath = \"/srv/a\"",
            "has both",
        ),
        ("redis = \"redis://h\"\nat = \"mars\"", "no place"),
        (
            "ssh = \"-oProxyCommand=x\"\nfiles = [\"/a\"]",
            "not an ssh destination",
        ),
        ("ssh = \"root@h\"", "fetches nothing"),
        ("ssh = \"root@h\"\nfiles = [\"a\"]", "absolute"),
        (
            "ssh = \"root@h\"\noutputs = { \"../a\" = \"x\" }",
            "no file's name",
        ),
        (
            "ssh = \"root@h\"\noutputs = { a = { command = \"x\", on = \"Noday\" } }",
            "no day",
        ),
        ("command = []", "is empty"),
        (
            "command = [\"x\"]\nfolder = true\noutput = \"y\"",
            "has both",
        ),
        ("host = false", "only be `true`"),
        ("host = true\ndeadline = \"soon\"", "not a duration"),
        (
            "path = \"/srv/a\"\nrefetch = \"https://x\"",
            "not backed up",
        ),
        ("path = \"/srv/a\"\ninventory = [\"sda\"]", "fetched again"),
        ("volume = \"data\"", "no volume"),
        ("volume = \"vg/a b\"", "no name of LVM's"),
        ("sqlite = \"relative.db\"", "absolute"),
    ] {
        let said = refused(&format!("[dataset.a]\n{dataset}\n"));
        assert!(said.contains(word), "{dataset}: {said}");
        assert!(said.contains("thrice.toml:"), "{said}");
        assert!(!said.contains("u:secret@"), "{said}");
    }
    let said = refused("[root.\"vg:pve\"]\neach = \"dir\"\nroute = [\"sda\"]\n");
    assert!(said.contains("must be `volume`"), "{said}");
    let said = refused("[root.\"vg:pve\"]\neach = \"volume\"\nnames = \"dns\"\n");
    assert!(said.contains("must be `own` or `kubernetes`"), "{said}");
    let said = refused("[root.\"/srv/x\"]\neach = \"dir\"\nnames = \"kubernetes\"\n");
    assert!(said.contains("`names`"), "{said}");
}

#[test]
fn r07_every_volume_is_a_dataset_and_a_listing_that_failed_is_no_empty_one() {
    let mut config = config(
        "[root.\"vg:pve\"]\neach = \"volume\"\nroute = [\"sda\"]\nexclude = [\"cache/\"]\n\
         [dataset.special]\nvolume = \"pve/two\"\nroute = []\nwhy = \"no\"\n",
    );
    config.roots.retain(|root| root.group.is_some());
    let mut landscape = policy::look(&config);
    let seen = |name: &str, unreadable: Option<&str>| VolumeSeen {
        name: name.into(),
        unreadable: unreadable.map(str::to_owned),
    };
    let all = vec![
        seen("one", None),
        seen("raw", Some("holds nothing")),
        seen("two", None),
    ];
    landscape.volumes.insert("vg:pve".into(), Ok(all));
    let known = [("gone".to_owned(), "vg:pve/gone".into())].into();
    let coverage = policy::resolve(&config, &landscape, &known);
    let mut datasets: Vec<_> = coverage
        .datasets
        .iter()
        .map(|dataset| (dataset.name.as_str(), dataset.source.place()))
        .collect();
    datasets.sort();
    let expected = [
        ("one", "vg:pve/one".into()),
        ("special", "vg:pve/two".into()),
    ];
    assert_eq!(datasets, expected);
    let excluded = |dataset: &policy::Dataset| {
        let Source::Volume(_, scope) = &dataset.source else {
            panic!("{dataset:?}");
        };
        let path = tree::RelPath::new("a/cache").unwrap();
        scope.judge(&path, true) == policy::Verdict::Skip
    };
    let is = |name: &str| coverage.datasets.iter().find(|one| one.name == name);
    assert!(excluded(is("one").unwrap()) && !excluded(is("special").unwrap()));
    assert_eq!(coverage.unrouted[0].path, Path::new("vg:pve/raw"));
    assert!(coverage.held.is_empty());
    // A group of which only some volumes are declared: the others have no route.
    let bare = self::config("[root.\"vg:pve\"]\n");
    let unrouted = policy::resolve(&bare, &landscape, &known).unrouted;
    assert_eq!(unrouted.len(), 3, "{unrouted:?}");
    let remedy = &unrouted[0].remedy;
    assert!(remedy.contains("volume = \"pve/one\""), "{remedy}");
    landscape
        .volumes
        .insert("vg:pve".into(), Err("lvs failed".into()));
    let coverage = policy::resolve(&config, &landscape, &known);
    assert_eq!(coverage.held[0].name, "gone");
    assert!(!coverage.errors.is_empty());
}

#[test]
fn images_are_of_all_volumes_or_of_those_that_cannot_be_read() {
    let of = |image: &str| {
        let mut config = config(&format!(
            "[root.\"vg:pve\"]\neach = \"volume\"\nroute = [\"sda\"]\nimage = {image}\n"
        ));
        config.roots.retain(|root| root.group.is_some());
        let mut landscape = policy::look(&config);
        let seen = |name: &str, unreadable: Option<&str>| VolumeSeen {
            name: name.into(),
            unreadable: unreadable.map(str::to_owned),
        };
        let all = vec![seen("files", None), seen("raw", Some("holds nothing"))];
        landscape.volumes.insert("vg:pve".into(), Ok(all));
        let coverage = policy::resolve(&config, &landscape, &[].into());
        let image = |source: &Source| match source {
            Source::Volume(volume, _) => volume.image,
            other => panic!("{other:?}"),
        };
        let found = coverage.datasets.iter();
        let found = found.map(|dataset| (dataset.name.clone(), image(&dataset.source)));
        (found.collect::<Vec<_>>(), coverage.unrouted.len())
    };
    let (files, raw) = ("files".to_owned(), "raw".to_owned());
    assert_eq!(of("false"), (vec![(files.clone(), Images::None)], 1));
    // Whether one that was not seen can be read is known when it is.
    let unreadable = vec![
        (files.clone(), Images::Unreadable),
        (raw.clone(), Images::All),
    ];
    assert_eq!(of("\"unreadable\""), (unreadable, 0));
    assert_eq!(
        of("true"),
        (vec![(files, Images::All), (raw, Images::All)], 0)
    );
}

#[test]
fn an_image_is_of_a_volume_or_a_device_and_has_every_block() {
    let config = config(
        "[dataset.a]\ndevice = \"/dev/sdb\"\n\
         [dataset.b]\nvolume = \"pve/b\"\nimage = true\nroute = [\"sda\"]\n",
    );
    let coverage = policy::resolve(&config, &policy::look(&config), &[].into());
    let of = |name: &str| {
        coverage
            .datasets
            .iter()
            .find(|dataset| dataset.name == name)
            .unwrap()
    };
    // It goes where the first root goes, and is in the proof.
    assert_eq!(
        (of("a").source.kind(), of("b").source.kind()),
        ("image", "image")
    );
    assert_eq!(of("a").route, ["sda"]);
    assert!(
        coverage
            .proof
            .iter()
            .any(|line| line.path == Path::new("device:/dev/sdb"))
    );
    for (text, expected) in [
        ("device = \"sdb\"", "absolute"),
        (
            "device = \"/dev/sdb\"\npath = \"/x\"",
            "has both `path` and `device`",
        ),
        (
            "device = \"/dev/sdb\"\nexclude = [\"x\"]",
            "`exclude` means nothing",
        ),
        (
            "volume = \"pve/a\"\nimage = true\nexclude = [\"x\"]",
            "`exclude` means nothing",
        ),
        ("volume = \"pve/a\"\nimage = \"some\"", "not `some`"),
        ("volume = \"pve/a\"\nimage = 3", "image"),
        ("path = \"/x\"\nimage = true", "it is for `volume`"),
    ] {
        let said = refused(&format!("[dataset.a]\nroute = [\"sda\"]\n{text}\n"));
        assert!(said.contains(expected), "{text}: {said}");
        assert!(said.contains("thrice.toml:"), "{said}");
    }
    let twice = "[dataset.a]\ndevice = \"/dev/sdb\"\n[dataset.b]\ndevice = \"/dev/sdb\"\n";
    assert!(refused(twice).contains("a tie"));
}

#[test]
fn a_guest_has_a_number_and_a_day_of_time() {
    assert!(matches!(
        made("[dataset.a]\nguest = 101\n"),
        Making::Guest(101)
    ));
    let DeclaredSource::Made(guest) = &config("[dataset.a]\nguest = 101\n").datasets[0].what else {
        panic!("no guest");
    };
    assert_eq!((guest.kind(), guest.place()), ("guest", "guest:101".into()));
    assert_eq!(guest.deadline.as_secs(), 24 * 3600);
    for (text, expected) in [
        ("guest = 7", "no guest's number"),
        ("guest = \"101\"", "whole number"),
        ("guest = 101\nhost = true", "has both"),
        ("guest = 101\ncheck = [\"x\"]", "means nothing here"),
    ] {
        let said = refused(&format!("[dataset.a]\n{text}\n"));
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_volume_is_named_after_its_claim_where_that_is_asked_for() {
    let names = |names: &str, claims: Option<Result<&[(&str, &str)], &str>>| {
        let mut config = config(&format!(
            "[root.\"vg:pve\"]\neach = \"volume\"\nroute = [\"sda\"]\n{names}\n"
        ));
        config.roots.retain(|root| root.group.is_some());
        let mut landscape = policy::look(&config);
        let volumes = ["one", "two"].map(|name| VolumeSeen {
            name: name.into(),
            unreadable: None,
        });
        landscape
            .volumes
            .insert("vg:pve".into(), Ok(volumes.into()));
        landscape.claims = claims.map(|claims| match claims {
            Ok(claims) => Ok(claims
                .iter()
                .map(|(place, name)| ((*place).into(), (*name).to_owned()))
                .collect()),
            Err(why) => Err(why.to_owned()),
        });
        let coverage = policy::resolve(&config, &landscape, &[].into());
        let datasets = coverage.datasets.iter();
        let datasets: Vec<_> = datasets.map(|dataset| dataset.name.clone()).collect();
        let warnings = coverage.warnings.iter();
        let warnings: Vec<_> = warnings.map(|one| one.message.clone()).collect();
        (datasets.join(" "), warnings.join(" "))
    };
    let claims: &[(&str, &str)] = &[("vg:pve/two", "web.data")];
    let kubernetes = "names = \"kubernetes\"";
    let said = names(kubernetes, Some(Ok(claims)));
    assert_eq!(said, ("one web.data".into(), String::new()));
    for own in ["", "names = \"own\""] {
        let said = names(own, Some(Ok(claims)));
        assert_eq!(said, ("one two".into(), String::new()));
    }
    let (datasets, warning) = names(kubernetes, Some(Err("refused")));
    assert_eq!(datasets, "one two");
    assert!(warning.contains("refused"), "{warning}");
}
