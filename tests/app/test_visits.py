from sgr_diffusers.app.visits import Visits


def test_a_visitor_stops_the_own_run_alone(tmp_path):
    visits = Visits(tmp_path)
    one, other = visits.begin_run("one"), visits.begin_run("other")
    visits.stop("one")
    assert one.is_set() and not other.is_set()
    again = visits.begin_run("one")
    assert not again.is_set()
    visits.stop("nobody")


def test_results_go_with_the_next_run_and_with_the_visitor(tmp_path):
    visits = Visits(tmp_path)
    first = visits.new_folder("one")
    (first / "a.zip").touch()
    second, other = visits.new_folder("one"), visits.new_folder("other")
    assert not first.exists() and second.exists()
    flag = visits.begin_run("one")
    visits.leave("one")
    assert flag.is_set() and not second.exists() and list(tmp_path.iterdir()) == [other]
    visits.leave("one")
