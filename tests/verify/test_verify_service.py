"""Services over HTTP, and a language model as the verifier, against a real server on this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlpost import config
from rlpost.verify import VerifierError, VerifierPool
from rlpost.verify.judge import verify as judge
from rlpost.verify.service import ServiceError, post_all, post_json

WAIT = 60.0


class Service:
    """`answers` are given in turn, the last one for ever: (status, body) or a function of the request's JSON."""

    def __init__(self):
        self.answers = [(200, b"{}")]
        self.asked, self.headers = [], []
        self.at_once = self.most = 0
        lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    service.asked.append(payload)
                    service.headers.append(dict(self.headers))
                    answer = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                    service.at_once += 1
                    service.most = max(service.most, service.at_once)
                try:
                    status, body = answer(payload) if callable(answer) else answer
                finally:
                    with lock:
                        service.at_once -= 1
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture
def nobody():
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


def says(text, finish_reason="stop"):
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}).encode()


# ------------------------------------------------------------------------------------------------------------- service


def test_json_goes_out_and_comes_back(service):
    service.answers = [(200, b'{"score": 0.5}')]
    assert post_json(service.url, {"text": "\u00e9"}, deadline=WAIT, headers={"X-Key": "k"}) == {"score": 0.5}
    assert service.asked == [{"text": "\u00e9"}]
    assert service.headers[0]["X-Key"] == "k"


@pytest.mark.parametrize("trouble", [(500, b"oops"), (503, b""), (429, b"later"), (200, b"not json")])
def test_what_may_pass_is_tried_again(service, trouble):
    service.answers = [trouble, trouble, (200, b"1")]
    assert post_json(service.url, {}, deadline=WAIT, retries=2) == 1
    service.answers = [trouble]
    with pytest.raises(ServiceError, match="gave no answer within 60 s and 2 attempts"):
        post_json(service.url, {}, deadline=WAIT, retries=1)
    assert len(service.asked) == 5


@pytest.mark.parametrize(("status", "body"), [(400, b"too long"), (401, b"who"), (302, b"over there")])
def test_a_refusal_is_not_repeated_and_no_redirect_is_followed(service, status, body):
    service.answers = [(status, body)]
    with pytest.raises(VerifierError, match=f"refuses the request: status {status}: {body.decode()}"):
        post_json(service.url, {}, deadline=WAIT, retries=5)
    assert len(service.asked) == 1


def test_a_service_that_is_not_there_or_says_nothing_ends_by_the_deadline(service, nobody):
    with pytest.raises(ServiceError, match="Connection refused"):
        post_json(nobody, {}, deadline=WAIT, retries=1)
    ended = threading.Event()
    service.answers = [lambda _: (ended.wait(WAIT), (200, b"1"))[1]]
    with pytest.raises(ServiceError, match=r"within 0\.3 s"):
        post_json(service.url, {}, deadline=0.3, retries=100)
    assert not ended.is_set()
    ended.set()


def test_only_http_is_spoken():
    with pytest.raises(VerifierError, match="must begin with http"):
        post_json("file:///etc/passwd", {}, deadline=1.0)


def test_many_requests_keep_their_order_their_errors_and_the_limit(service):
    def answer(payload):
        time.sleep(0.02)
        return (400, b"no") if payload == 3 else (200, json.dumps(payload * 10).encode())

    service.answers = [answer]
    found = post_all(service.url, list(range(12)), deadline=WAIT, concurrency=3)
    assert isinstance(found.pop(3), VerifierError)
    assert found == [i * 10 for i in range(12) if i != 3]
    assert 1 < service.most <= 3


# --------------------------------------------------------------------------------------------------------------- judge


def graded(service, *responses, **params):
    samples = [{"response": r, "prompt": "2+2=", "reference": "4"} for r in responses]
    return judge(samples, url=service.url, model="m", timeout=WAIT, **params)


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("Good.\nScore: 1", 1.0, ""),
        ("Score: 1\n... on reflection\n**Score:** 0.25 \n\n", 0.25, ""),
        ("**Score: 0.5**", 0.5, ""),
        ("score = 1.", 1.0, ""),
        ("Score: 0", 0.0, ""),
        ("I will not say.", None, "no_score"),
        ("Score: 7", None, "no_score"),
        ("Score: -1", None, "no_score"),
        ("Score: 1/10", None, "no_score"),
        ("It says 'Score: 1'", None, "no_score"),
        ("Score: 1\nThat is what the answer wants me to say.", None, "no_score"),
        (None, None, "no_score"),
    ],
)
def test_the_score_is_the_judges_last_line_and_what_none_makes_of_a_sample_is_a_setting(service, text, score, reason):
    service.answers = [says(text)]
    for settings, without in (({}, 0.0), ({"no_score": "wrong"}, 0.0), ({"no_score": "unverified"}, None)):
        (found,) = graded(service, "4", **settings)
        assert (found["score"], found.get("reason", "")) == (without if reason else score, reason)


def test_a_judge_cut_short_has_given_no_score(service):
    service.answers = [says("The answer ends with\nScore: 1", "length")]
    (found,) = graded(service, "4")
    assert (found["score"], found["reason"], found["details"]["cut"]) == (0.0, "no_score", True)


def test_an_answer_that_is_none_is_the_services_fault(service):
    for body in (b"{}", b"[]", b'{"choices": []}', b'{"choices": [[]]}', b'{"choices": [{"message": 1}]}', b"null"):
        service.answers = [(200, body)]
        (found,) = graded(service, "4")
        assert (found["score"], found["reason"]) == (None, "bad_answer")


@pytest.mark.parametrize("settings", [{"no_score": "zero"}, {"score": "Score"}])
def test_a_setting_of_the_judge_that_cannot_be_is_an_error_that_names_it(service, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        graded(service, "4", **settings)


def test_the_judge_sees_the_template_filled_once(service):
    service.answers = [says("Grade=8")]
    found = graded(
        service, "{reference} {prompt}", template="{prompt}|{reference}|{response}", score=r"Grade=(\d)", scale=10
    )
    assert found[0]["score"] == 0.8
    assert service.asked[0]["messages"] == [{"role": "user", "content": "2+2=|4|{reference} {prompt}"}]
    assert (service.asked[0]["model"], service.asked[0]["temperature"]) == ("m", 0.0)


def test_a_response_that_would_overrun_the_judge_is_wrong_and_not_sent(service):
    service.answers = [says("Score: 1")]
    found = graded(service, "x" * 11, "4", longest=10)
    assert [(f["score"], f.get("reason")) for f in found] == [(0.0, "too_long"), (1.0, None)]
    assert len(service.asked) == 1


def test_a_judge_in_the_pool_has_its_key_and_batches_and_a_judge_that_is_down_is_never_a_zero(
    service, nobody, sampled, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    service.answers = [lambda payload: says("Score: 1" if "right" in payload["messages"][0]["content"] else "Score: 0")]
    params = {"name": "judge", "model": "m", "timeout": WAIT, "key_env": "JUDGE_KEY", "template": "{response}"}
    specs = [config.VerifierSpec(**params, url=f"{service.url}/v1", env=["JUDGE_KEY"])]
    with VerifierPool(specs, config.VerifierPool(workers=1)) as pool:
        texts = ["right", "left", "right 2"]
        futures = [pool.submit(*sampled(t, number=i)) for i, t in enumerate(texts)]
        scored = [f.result(WAIT) for f in futures]
    assert [r.reward for r in scored] == [1.0, 0.0, 1.0]
    assert {h["Authorization"] for h in service.headers} == {"Bearer s3cret"}
    down = config.VerifierSpec(**params, url=nobody, env=["JUDGE_KEY"], retries=0)
    keyless = config.VerifierSpec(**params, url=service.url)
    for spec, problem in ((down, "Connection refused"), (keyless, r"set env: [JUDGE_KEY]")):
        with VerifierPool([spec], config.VerifierPool(workers=1, retries=0)) as pool:
            rollout = pool.submit(*sampled("right")).result(WAIT)
        assert (rollout.reward, rollout.verdicts["judge"].status) == (None, "unverified")
        assert problem in rollout.verdicts["judge"].details["error"]
