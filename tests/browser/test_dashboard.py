"""The dashboard in a real browser: what is seen, how it is used, and who can use it."""

import json
import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.stage import MEASURED, Stage, drawn, node, shop
from tests.chromium import IMAGES, SCREENSHOTS
from tests.dashboard_mesh import FakeMesh, big_mesh

HOSTILE = [
    '<img src=x onerror="window.pwned=1">',
    "</title><script>window.pwned=2</script>",
    "\u202egnitsil\u202c",
    "a\u0000b\u001b[31mred\r\n",
    "x" * 3_000,
    "\u05d0\u05d1\u05d2 \u0627\u0644",
    "{{7*7}}${7*7}",
    "\"'`>&amp;",
]


def edge_states(page: Page) -> list[str]:
    found: list[str] = page.locator(".edge").evaluate_all("all => all.map((each) => each.dataset.state)")
    return sorted(found)


def test_the_mesh_is_shown_as_a_graph_with_live_rates(stage: Stage) -> None:
    def look(page: Page) -> None:
        expect(page.locator(".node")).to_have_count(9)
        expect(page.locator(".edge")).to_have_count(7)
        assert edge_states(page) == ["denied", "failed", "mtls", "mtls", "mtls", "mtls", "plain"]
        expect(page.locator("#live-text")).to_have_text("live")
        expect(page.locator("#banner")).to_be_hidden()
        totals = page.locator("#totals").inner_text()
        assert re.search(r"services\s+7\s+connections\s+2\d", totals), totals
        labels = page.locator(".label:not([data-quiet]) .what").all_text_contents()
        assert any(each.startswith("denied 2") for each in labels), labels
        assert any("fail" in each for each in labels), labels
        down = node(page, "service/shop/catalog")
        assert "0 of 2 endpoints ready" in down.get_attribute("aria-label")
        expect(down.locator(".health")).to_have_attribute("data-health", "down")

    stage.show(shop(), look)


def test_the_picture_moves_with_the_mesh_and_nothing_that_was_there_jumps(stage: Stage) -> None:
    mesh = shop()

    def places(page: Page) -> dict[str, str]:
        found: dict[str, str] = page.locator(".node").evaluate_all(
            "all => Object.fromEntries(all.map((each) => [each.dataset.id, each.getAttribute('transform')]))"
        )
        return found

    def look(page: Page) -> None:
        before = places(page)
        drawn(page, 2)
        assert places(page) == before
        page.locator("#zoom-in").click()
        mesh.service("shop/search")
        mesh.talks("shop/frontend", "shop/search", opened=9.0)
        expect(node(page, "service/shop/search")).to_be_visible()
        after = places(page)
        assert {name: after[name] for name in before} == before
        spots = list(after.values())
        assert len(set(spots)) == len(spots)
        mesh.talks_ = [each for each in mesh.talks_ if each.source != "batch/intruder"]
        del mesh.clients["batch/intruder"]
        expect(node(page, "workload/batch/intruder")).to_have_count(0)

    stage.show(mesh, look)


def test_details_of_a_service_have_endpoints_identities_certificates_and_connections(stage: Stage) -> None:
    def look(page: Page) -> None:
        node(page, "service/shop/payments").click()
        panel = page.locator("#detail")
        expect(panel.locator("h2")).to_have_text("payments")
        expect(panel).to_contain_text("2 of 2 endpoints ready")
        expect(panel).to_contain_text("10.0.1.2:8080")
        expect(panel).to_contain_text("spiffe://cluster.local/ns/shop/sa/payments")
        expect(panel).to_contain_text("valid for 52 min more")
        expect(panel).to_contain_text("policy_denied")
        expect(panel).to_contain_text("no ALLOW policy of shop/payments matches")
        panel.get_by_role("button", name="batch/intruder").click()
        expect(panel.locator("h2")).to_have_text("batch/intruder \u2192 shop/payments")
        expect(panel.locator(".chips")).to_contain_text("denied")
        expect(panel).to_contain_text("spiffe://cluster.local/ns/batch/sa/intruder")
        expect(panel.locator(".spark .stroke")).to_have_count(1)
        drawn(page, 2)  # and it stays while the picture moves
        expect(panel.locator("h2")).to_have_text("batch/intruder \u2192 shop/payments")
        panel.get_by_role("button", name="Close details").click()
        expect(panel).to_be_hidden()
        page.locator("#totals button").click()
        expect(panel).to_contain_text("1 denial")
        panel.get_by_role("button", name="batch/intruder \u2192 shop/payments").click()
        expect(panel.locator(".chips")).to_contain_text("denied")
        page.get_by_role("button", name="node-2, agent ready").click()
        expect(panel).to_contain_text("ringfence/node/node-2")

    stage.show(shop(), look)


def test_everything_can_be_done_by_keyboard(stage: Stage) -> None:
    def look(page: Page) -> None:
        focused = page.locator("*:focus")
        page.keyboard.press("Tab")
        expect(focused).to_have_text("Skip to the mesh")
        page.keyboard.press("/")
        expect(focused).to_have_id("search")
        page.keyboard.type("payments")
        expect(page.locator(".node")).to_have_count(3)  # it, and who asks it
        page.keyboard.press("Escape")
        expect(page.locator(".node")).to_have_count(9)

        node(page, "service/shop/cart").focus()
        page.keyboard.press("ArrowRight")
        expect(focused).to_have_attribute("data-id", "service/data/redis")
        page.keyboard.press("ArrowLeft")
        expect(focused).to_have_attribute("data-id", "service/shop/cart")
        expect(page.locator('.node[tabindex="0"]')).to_have_count(1)
        page.keyboard.press("Enter")
        expect(page.locator("#detail h2")).to_have_text("cart")
        expect(focused).to_have_text("cart")
        page.keyboard.press("f")
        expect(page.locator(".node")).to_have_count(3)
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        expect(focused).to_have_attribute("data-id", "service/shop/cart")
        page.keyboard.press("Escape")
        expect(page.locator(".node")).to_have_count(9)

        before = page.locator(".world").get_attribute("transform")
        page.keyboard.press("+")
        assert page.locator(".world").get_attribute("transform") != before
        page.keyboard.press("0")
        page.keyboard.press("t")
        expect(page.locator("#table-view")).to_be_visible()
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#help")).to_be_hidden()

    stage.show(shop(), look)


def test_the_lane_within_a_node_is_shown_as_such_and_not_as_a_warning(stage: Stage) -> None:
    def look(page: Page) -> None:
        expect(page.locator('.edge[data-state="lane"]')).to_have_count(1)
        expect(page.locator('.edge[data-state="plain"]')).to_have_count(1)  # the one that is
        expect(page.locator(".legend")).to_contain_text("judged on the node (lane)")
        page.get_by_role("button", name="Table").click()
        _, edges = page.locator("#table-view section").all()
        row = edges.locator("tbody tr", has_text="shop/cart").filter(has_text="shop/checkout")
        expect(row).to_contain_text("judged on the node (lane)")
        expect(row).not_to_contain_text("plaintext")

    mesh = shop()
    mesh.talks("shop/cart", "shop/checkout", opened=2.0, security="lane")
    stage.show(mesh, look)


def test_the_tables_say_the_same_and_can_be_sorted(stage: Stage) -> None:
    def look(page: Page) -> None:
        page.get_by_role("button", name="Table").click()
        services, edges = page.locator("#table-view section").all()
        expect(services.locator("tbody tr")).to_have_count(9)
        expect(edges.locator("tbody tr")).to_have_count(7)
        expect(edges.locator("tbody")).to_contain_text("plaintext")
        edges.get_by_role("button", name="Denied", exact=True).click()
        expect(edges.locator("tbody tr").first).to_contain_text("batch/intruder")
        expect(edges.locator('th[aria-sort="descending"]')).to_have_text("Denied")
        edges.locator("tbody tr").first.get_by_role("button", name="denied").focus()
        drawn(page, 2)
        expect(page.locator("*:focus")).to_have_text("denied")  # an update takes nobody's place away
        page.keyboard.press("Enter")
        expect(page.locator("#detail h2")).to_contain_text("batch/intruder")
        page.locator("#problems").check()
        expect(services.locator("tbody tr")).to_have_count(6)

    stage.show(shop(), look)


def test_filters_leave_what_was_asked_for(stage: Stage) -> None:
    def look(page: Page) -> None:
        page.locator("#namespace").select_option("batch")
        expect(page.locator(".node")).to_have_count(4)  # two, and whom they ask
        page.locator("#namespace").select_option("")
        page.locator("#hide-idle").check()
        expect(page.locator(".node")).to_have_count(8)
        page.locator("#hide-idle").uncheck()
        page.locator("#search").fill("sa/catalog")  # in its identity
        expect(page.locator(".node")).to_have_count(1)
        page.locator("#search").fill("no such thing")
        expect(page.locator("#empty")).to_have_text("Nothing fits the filters.")
        page.locator("#search").fill("")
        page.locator("#group").check()
        expect(page.locator(".node")).to_have_count(3)
        node(page, "namespace/shop").click()
        page.locator("#detail").get_by_role("button", name="Show its services").click()
        expect(node(page, "service/shop/cart")).to_be_visible()

    stage.show(shop(), look)


def test_names_are_data_whatever_is_in_them(stage: Stage) -> None:
    mesh = FakeMesh()
    for number, name in enumerate(HOSTILE):
        mesh.service(f"ns-{number}/{name}")
        mesh.client(f"clients-{number}/{name}")
        mesh.talks(f"clients-{number}/{name}", f"ns-{number}/{name}", opened=2.0, denied=1.0)
        mesh.record(f"clients-{number}/{name}", f"ns-{number}/{name}", close_reason=name, flag="DENY", detail=name)
    mesh.missing["node-2"] = HOSTILE[0]

    def look(page: Page) -> None:
        expect(page.locator(".node")).to_have_count(2 * len(HOSTILE))
        expect(page.locator("#banner")).to_contain_text("<img src=x")
        for each in page.locator(".node").all():
            each.click(force=True)
            expect(page.locator("#detail h3").first).to_be_visible()
        page.locator("#detail .rows .link").first.click()
        expect(page.locator("#detail .spark, #detail .none").first).to_be_visible()
        page.keyboard.press("t")
        expect(page.locator("#table-view tbody tr").first).to_be_visible()
        shown = page.locator("body").inner_text() + "".join(page.locator(".node").all_text_contents())
        assert "\u27e8202e\u27e9" in shown
        assert not re.search("[\u0000\u001b\u202e\u202c]", shown)
        assert page.evaluate("window.pwned") is None
        assert page.locator("img:not([src='/static/icon.svg']), script:not([src='/static/app.js'])").count() == 0
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth")

    stage.show(mesh, look)


def test_the_page_says_when_an_agent_is_missing_and_when_the_picture_is_old(stage: Stage) -> None:
    mesh = shop()
    url, agent = stage.serve(mesh)

    def look(page: Page) -> None:
        drawn(page, MEASURED)
        mesh.missing["node-2"] = "10.0.0.2:15022: can not connect: Connection refused"
        expect(page.locator("#live")).to_have_attribute("data-state", "partial")
        expect(page.locator("#live-text")).to_have_text("live, without 1 agent")
        expect(page.locator("#banner")).to_have_text("node-2: 10.0.0.2:15022: can not connect: Connection refused")
        expect(page.locator("#announcer")).to_contain_text("agent not reached: node-2")
        expect(page.locator(".node")).to_have_count(9)
        mesh.missing.clear()
        expect(page.locator("#live")).to_have_attribute("data-state", "live")

        agent.answer = lambda: ["nonsense"]
        expect(page.locator("#live")).to_have_attribute("data-state", "stale")
        expect(page.locator("#banner")).to_contain_text("check --agent")
        expect(page.locator(".node")).to_have_count(9)
        agent.answer = mesh.document
        expect(page.locator("#live")).to_have_attribute("data-state", "live")

        stage.stop_serving()
        expect(page.locator("#live")).to_have_attribute("data-state", "lost")
        expect(page.locator(".node")).to_have_count(9)

    stage.open(url, look, errors_wanted=True)  # a connection that is refused is an error on the console


def test_nothing_is_asked_while_the_page_is_hidden(stage: Stage) -> None:
    def look(page: Page) -> None:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        page.evaluate(f"{hide} document.dispatchEvent(new Event('visibilitychange')); }}", True)
        for _ in range(30):  # what is under way is told late by a busy machine
            asked.clear()
            page.wait_for_timeout(1000)
            if not asked:
                break
        assert asked == []
        page.evaluate(f"{hide} document.dispatchEvent(new Event('visibilitychange')); }}", False)
        drawn(page, 2)
        assert asked

    stage.show(shop(), look)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anybody_out(stage: Stage, scheme: str) -> None:
    def judge(page: Page, what: str) -> None:
        found = Axe().run(page)
        wrong = [
            (what, each["id"], [entry["html"][:160] for entry in each["nodes"][:3]])
            for each in found.response["violations"]
        ]
        assert wrong == [], json.dumps(wrong, indent=1)

    def look(page: Page) -> None:
        judge(page, "graph")
        node(page, "service/shop/payments").click()
        expect(page.locator("#detail h3").first).to_be_visible()
        judge(page, "details of a service")
        page.locator("#detail").get_by_role("button", name="batch/intruder").click()
        expect(page.locator("#detail .spark")).to_be_visible()
        judge(page, "details of an edge")
        page.keyboard.press("Escape")
        page.keyboard.press("t")
        judge(page, "tables")
        page.keyboard.press("?")
        judge(page, "help")

    stage.show(shop(), look, color_scheme=scheme, bypass_csp=True)  # axe is a script that the page does not bring


def test_light_and_dark_follow_the_system_or_the_switch(stage: Stage) -> None:
    def ground(page: Page) -> list[int]:
        text = str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        return [int(each) for each in re.findall(r"\d+", text)[:3]]

    def look(page: Page) -> None:
        assert max(ground(page)) < 60
        switch = page.locator("#theme")
        switch.click()
        expect(switch).to_have_text("Theme: light")
        assert min(ground(page)) > 200
        page.reload()
        drawn(page, 1)
        expect(switch).to_have_text("Theme: light")
        assert min(ground(page)) > 200
        switch.click()
        assert max(ground(page)) < 60

    stage.show(shop(), look, color_scheme="dark")


def test_what_moves_does_not_where_that_is_not_wanted(stage: Stage) -> None:
    running = "document.getAnimations().filter((each) => each.playState === 'running').length"

    def look(wanted: bool) -> Any:
        def see(page: Page) -> None:
            assert (page.evaluate(running) > 0) is wanted

        return see

    stage.show(shop(), look(True), reduced_motion="no-preference")
    stage.show(shop(), look(False), reduced_motion="reduce")


def test_two_hundred_services_stay_usable(stage: Stage) -> None:
    mesh = big_mesh(200)
    edges = len({(each.source, each.target) for each in mesh.talks_})

    def look(page: Page) -> None:
        expect(page.locator(".node")).to_have_count(10)  # by namespace at first
        expect(page.locator("#group")).to_be_checked()
        page.locator("#group").uncheck()
        expect(page.locator(".node")).to_have_count(200)
        assert page.locator(".edge").count() == edges
        assert page.evaluate("document.querySelectorAll('*').length") < 200 * 12 + edges * 10 + 300
        overlaps = page.locator(".node").evaluate_all(
            """all => {
              const boxes = all.map((each) => each.querySelector('.card').getBoundingClientRect());
              const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
              return boxes.flatMap((box, place) => boxes.slice(place + 1).filter((other) => meet(box, other))).length;
            }"""
        )
        assert overlaps == 0
        drawn(page, 3)  # it goes on
        if SCREENSHOTS:
            page.screenshot(path=IMAGES / "dashboard-200.png")
        page.locator("#search").fill("service-042")
        expect(node(page, "service/team-02/service-042")).to_be_visible()
        assert page.locator(".node").count() < 15
        node(page, "service/team-02/service-042").click()
        expect(page.locator("#detail h2")).to_have_text("service-042")
        page.keyboard.press("t")
        expect(page.locator("#table-view tbody tr").first).to_be_visible()
        page.locator("#search").fill("")
        expect(page.locator("#table-view section").first.locator("tbody tr")).to_have_count(200)

    stage.show(mesh, look)


def test_where_everybody_asks_everybody_they_stand_in_a_ring(stage: Stage) -> None:
    mesh = FakeMesh()
    names = [f"ring/{letter}" for letter in "abcdef"]
    for name in names:
        mesh.service(name)
        for other in names:
            if other != name:
                mesh.talks(name, other)

    def look(page: Page) -> None:
        boxes = page.locator(".card").evaluate_all("all => all.map((each) => each.getBoundingClientRect().toJSON())")
        assert len({(round(box["x"]), round(box["y"])) for box in boxes}) == 6
        assert len({round(box["x"]) for box in boxes}) > 2
        expect(page.locator(".edge")).to_have_count(30)

    stage.show(mesh, look)


def test_an_empty_mesh_says_so(stage: Stage) -> None:
    def look(page: Page) -> None:
        expect(page.locator("#empty")).to_contain_text("No services or workloads yet")

    stage.show(FakeMesh(), look)


def test_who_has_the_token_gets_in_and_nobody_else(stage: Stage) -> None:
    url, _ = stage.serve(shop(), token="a token of sixteen or more")

    def look(page: Page) -> None:
        expect(page).to_have_url(f"{url}login")
        wrong = Axe().run(page).response["violations"]
        assert wrong == []
        page.get_by_label("Token").fill("a token of sixteen or less")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the token.")
        page.get_by_label("Token").fill("a token of sixteen or more")
        page.keyboard.press("Enter")
        expect(page).to_have_url(url)
        expect(page.locator(".node")).to_have_count(9)
        assert page.evaluate("document.cookie") == ""
        assert "token" not in page.url

    stage.open(url, look, bypass_csp=True)
