"""The shipped rules, by replies as the providers send them (addresses replaced)."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from relaycluster.config.rules import rules_of, shipped
from relaycluster.mail.outcome import Deferred, Failed, Stage
from relaycluster.policy.pace import Pace, SlowDown, Suspend, Unchanged
from relaycluster.policy.trouble import Scope, class_of, judge
from tests.support.replies import heard

RULES = rules_of((), True)
GOOGLE, YAHOO, APPLE = "gmail-smtp-in.l.google.com", "mta5.am0.yahoodns.net", "mx01.mail.icloud.com"
OLC, O365 = "outlook-com.olc.protection.outlook.com", "example-com.mail.protection.outlook.com"
COMCAST, ORANGE, OTHER = "mx2.comcast.net", "smtp-in.orange.fr", "mx.small.example"

D, F = Deferred, Failed
MINUTE, HOUR = 60, 3600
REAL: list[tuple[str, Stage, str, type, Pace, str]] = [
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited. - gsmtp", D, Suspend(15 * MINUTE), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address. - gsmtp", D, Suspend(15 * MINUTE), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "550 5.7.28 Gmail has detected an unusual rate of mail originating from your DKIM domain [example.org 36]. - gsmtp", D, Unchanged(), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.26 Your email has been rate limited because it is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM. - gsmtp", D, Unchanged(), "auth-policy"),
    (GOOGLE, Stage.FINAL_DOT, "550 5.7.26 Your email has been blocked because the sender is unauthenticated. - gsmtp", F, Unchanged(), "auth-policy"),
    (GOOGLE, Stage.FINAL_DOT, "550 5.7.25 The IP address sending this message does not have a PTR record setup - gsmtp", F, Unchanged(), "bad-configuration"),
    (GOOGLE, Stage.FINAL_DOT, "550 5.7.1 [192.0.2.1 19] Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked. - gsmtp", F, Unchanged(), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "552 5.7.0 This message was blocked because its content presents a potential security issue. - gsmtp", F, Unchanged(), "virus-related"),
    (GOOGLE, Stage.RCPT, "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered. - gsmtp", D, Unchanged(), "inactive-mailbox"),
    (GOOGLE, Stage.RCPT, "550 5.1.1 The email account that you tried to reach does not exist. - gsmtp", F, Unchanged(), "bad-mailbox"),
    (GOOGLE, Stage.RCPT, "452 4.2.2 The recipient's inbox is out of storage space. - gsmtp", D, Unchanged(), "quota-issues"),
    (GOOGLE, Stage.EHLO, "421 4.7.0 Try again later, closing connection. (EHLO) - gsmtp", D, SlowDown(), "policy-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.3.0 Temporary System Problem. Try again later - gsmtp", D, Unchanged(), "other"),
    (YAHOO, Stage.GREETING, "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes", D, Suspend(30 * MINUTE), "spam-related"),
    (YAHOO, Stage.GREETING, "421 4.7.0 [TS01] Messages from 192.0.2.1 temporarily deferred due to user complaints - 4.16.55.1", D, Suspend(30 * MINUTE), "spam-related"),
    (YAHOO, Stage.MAIL, "421 4.16.56 [TS02] Messages temporarily deferred - excessive complaints", D, Suspend(30 * MINUTE), "spam-related"),
    (YAHOO, Stage.MAIL, "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed. See https://postmaster.yahooinc.com/error-codes", D, Suspend(4 * HOUR), "spam-related"),
    (YAHOO, Stage.GREETING, "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list", D, Suspend(HOUR), "spam-related"),
    (YAHOO, Stage.FINAL_DOT, "554 5.7.9 Message not accepted for policy reasons.", F, Unchanged(), "policy-related"),
    (YAHOO, Stage.FINAL_DOT, "552 1 Requested mail action aborted, mailbox not found", F, Unchanged(), "bad-mailbox"),
    (YAHOO, Stage.FINAL_DOT, "554 delivery error: dd This user doesn't have a yahoo.com account (x@yahoo.com) [0] - mta1.mail.yahoo.com", F, Unchanged(), "bad-mailbox"),
    (YAHOO, Stage.FINAL_DOT, "554 30 Sorry, your message to x@yahoo.com cannot be delivered. This mailbox is disabled (554.30).", F, Unchanged(), "inactive-mailbox"),
    (OLC, Stage.MAIL, "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150). You can also refer your provider to http://mail.live.com/mail/troubleshooting.aspx#errors.", D, Suspend(HOUR), "spam-related"),
    (OLC, Stage.MAIL, "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider. (S3140)", D, Suspend(HOUR), "spam-related"),
    (OLC, Stage.GREETING, "421 RP-001 (BAY004-MC1F1) Unfortunately, some messages from 192.0.2.1 weren't sent. Please try again. We have limits for how many messages can be sent per hour and per day.", D, Suspend(15 * MINUTE), "spam-related"),
    (OLC, Stage.GREETING, "421 RP-002 (BAY004-MC1F1) The mail server IP connecting to Outlook.com server has exceeded the rate limit allowed on this connection.", D, SlowDown(), "policy-related"),
    (OLC, Stage.GREETING, "421 RP-003 (BAY004-MC1F1) Unfortunately, some messages from 192.0.2.1 weren't sent. The mail server IP has exceeded the connection limit allowed.", D, SlowDown(), "policy-related"),
    (OLC, Stage.MAIL, "550 SC-004 (SNT004-MC1F1) Unfortunately, messages from 192.0.2.1 weren't sent. Your Internet service provider has been blocked for complaints.", D, Suspend(4 * HOUR), "spam-related"),
    (OLC, Stage.MAIL, "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information see https://aka.ms/postmaster (S775)", D, Suspend(15 * MINUTE), "spam-related"),
    (O365, Stage.MAIL, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719) [DB5EUR01FT010.eop-EUR01.prod.protection.outlook.com]", D, SlowDown(), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/", D, Suspend(HOUR), "spam-related"),
    (O365, Stage.RCPT, "550 5.4.1 Recipient address rejected: Access denied. AS(201806281) [DB5EUR01FT010.eop-EUR01.prod.protection.outlook.com]", F, Unchanged(), "bad-mailbox"),
    (OLC, Stage.RCPT, "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302). [DM6NAM11FT036.eop-nam11.prod.protection.outlook.com]", F, Unchanged(), "bad-mailbox"),
    (OLC, Stage.FINAL_DOT, "550 5.7.515 Access denied, sending domain example.org does not meet the required authentication level.", F, Unchanged(), "auth-policy"),
    ("example-com.x-v1.mx.microsoft", Stage.MAIL, "451 4.7.651 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. (S775)", D, Suspend(15 * MINUTE), "spam-related"),
    (APPLE, Stage.RCPT, "421 4.7.1 Messages to x@icloud.com deferred due to excessive volume. Try again later - https://support.apple.com/en-us/HT204137", D, SlowDown(), "policy-related"),
    (APPLE, Stage.MAIL, "451 4.7.1 Service unavailable - try again later", D, SlowDown(), "policy-related"),
    (APPLE, Stage.FINAL_DOT, "550 5.7.1 [CS01] Message rejected due to local policy. Please visit https://support.apple.com/en-us/HT204137", F, Unchanged(), "spam-related"),
    (COMCAST, Stage.GREETING, "421 4.1.0 192.0.2.1 Throttled - try again later. Please see http://postmaster.comcast.net/smtp-error-codes.php#RL000001", D, SlowDown(), "policy-related"),
    (COMCAST, Stage.GREETING, "421 resimta-h1p Too many sessions opened", D, SlowDown(), "policy-related"),
    (COMCAST, Stage.GREETING, "554 resimta-h1p comcast 192.0.2.1 Comcast block for spam. Please see http://postmaster.comcast.net/smtp-error-codes.php#BL000000", D, Suspend(HOUR), "spam-related"),
    ("mx00.gmx.net", Stage.GREETING, "554 gmx.net (mxgmx016) Nemesis ESMTP Service not available No SMTP service IP address is black listed.", D, Suspend(HOUR), "spam-related"),
    ("mx00.t-online.de", Stage.GREETING, "554 IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.) (BL)", D, Suspend(4 * HOUR), "policy-related"),
    (ORANGE, Stage.GREETING, "421 mwinf5c62 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]", D, SlowDown(), "policy-related"),
    (ORANGE, Stage.GREETING, "550 5.7.1 Service refuse. Veuillez essayer plus tard. Service refused, please try later. LPN007_510", D, Suspend(HOUR), "spam-related"),
    (ORANGE, Stage.FINAL_DOT, "550 5.2.0 Mail rejete. Mail rejected. OFR_506 [506]", F, Unchanged(), "spam-related"),
    ("mxa-00000001.gslb.pphosted.com", Stage.GREETING, "554 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1", D, Suspend(30 * MINUTE), "spam-related"),
    (OTHER, Stage.GREETING, "421 4.7.0 mx.small.example Error: too many connections from 192.0.2.1", D, SlowDown(), "policy-related"),
    (OTHER, Stage.MAIL, "450 4.7.1 Error: too much mail from 192.0.2.1", D, SlowDown(), "policy-related"),
    (OTHER, Stage.RCPT, "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", F, Unchanged(), "spam-related"),
    # What looks like it, and is not: nobody is slowed down by greylisting, a full mailbox, or a provider's words on another host.
    (OTHER, Stage.RCPT, "450 4.7.1 <x@small.example>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/", D, Unchanged(), "policy-related"),
    (OTHER, Stage.RCPT, "452 4.5.3 Error: too many recipients", D, Unchanged(), "policy-related"),
    (OTHER, Stage.RCPT, "452 4.2.2 Mailbox full", D, Unchanged(), "quota-issues"),
    (OTHER, Stage.FINAL_DOT, "550 5.7.1 [TSS04] S3150 RP-001 says our own filter", F, Unchanged(), "policy-related"),
    (OTHER, Stage.RCPT, "550 5.1.1 no such user: too many connections", F, Unchanged(), "bad-mailbox"),
    # One sender's trouble, or one recipient's, is nobody else's.
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your SPF domain [customer.example 35]. To protect our users from spam, mail sent from your domain has been temporarily rate limited.", D, Unchanged(), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail containing one of your URL domains. To protect our users from spam, mail with the URL has been temporarily rate limited.", D, Unchanged(), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP Netblock. - gsmtp", D, Suspend(15 * MINUTE), "spam-related"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.23 The IP address sending this message does not have a PTR record. - gsmtp", D, SlowDown(), "bad-configuration"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.29 Your email has been rate limited because this message wasn't sent over a TLS connection. - gsmtp", D, SlowDown(), "bad-configuration"),
    (GOOGLE, Stage.FINAL_DOT, "421 4.7.32 Your email has been rate limited because the From: header isn't aligned with either the authenticated SPF or DKIM organizational domain. - gsmtp", D, Unchanged(), "auth-policy"),
    (GOOGLE, Stage.FINAL_DOT, "550 5.7.1 [192.0.2.1 12] Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been blocked.", D, Suspend(15 * MINUTE), "spam-related"),
    (YAHOO, Stage.RCPT, "452 Too many recipients", D, Unchanged(), "quota-issues"),
    (YAHOO, Stage.RCPT, "452 4.5.3 Too many recipients", D, Unchanged(), "policy-related"),
    (YAHOO, Stage.RCPT, "452 4.2.2 user mailbox quota exceeded", D, Unchanged(), "quota-issues"),
    (YAHOO, Stage.GREETING, "421 4.7.1 [TR01] Too many connections", D, SlowDown(), "policy-related"),
    (YAHOO, Stage.MAIL, "451 Resources temporarily not available - Please try again later [#4.16.5].", D, SlowDown(), "invalid-sender"),
    ("mx00.gmx.net", Stage.RCPT, "452 4.5.3 Too many recipients", D, Unchanged(), "policy-related"),
    ("mx00.gmx.net", Stage.GREETING, "421 gmx.net (mxgmx016) Nemesis ESMTP Service not available Too many connections", D, SlowDown(), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.502 Access denied, banned sender", F, Unchanged(), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.705 Access denied, tenant has exceeded threshold", F, Unchanged(), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP.", D, Suspend(HOUR), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", F, Unchanged(), "policy-related"),
    (O365, Stage.MAIL, "550 5.7.1 Service unavailable, banned sending IP [192.0.2.1]. AS(1410)", D, Suspend(HOUR), "spam-related"),
    (OTHER, Stage.MAIL, "450 4.7.1 <a@customer.example>: Sender address rejected: sender rate limit exceeded", D, Unchanged(), "policy-related"),
    (OTHER, Stage.RCPT, "450 4.2.1 <bob@x.example>: this user is getting too much mail right now", D, Unchanged(), "inactive-mailbox"),
    (OTHER, Stage.RCPT, "450 4.7.1 Error: too many recipients from 192.0.2.1", D, SlowDown(), "policy-related"),
    (OTHER, Stage.MAIL, "451 4.7.1 Rate limit exceeded for host 2001:db8::1", D, SlowDown(), "policy-related"),
    (OTHER, Stage.GREETING, "450 4.7.1 You are sending too fast", D, SlowDown(), "policy-related"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "stage", "text", "kind", "pace", "bounce_class"), REAL, ids=[each[2][:40] for each in REAL]
)
def test_real_replies(host: str, stage: Stage, text: str, kind: type, pace: Pace, bounce_class: str) -> None:
    """Each reply: deferred or failed, what it means for our pace, and its class."""
    verdict = judge(stage, heard(text), host, "recipient.example", RULES)
    assert (type(verdict.outcome), verdict.pace) == (kind, pace), verdict.rule
    assert class_of(verdict.outcome, "recipient.example", RULES).value == bounce_class, verdict.rule


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (ORANGE, "550 5.1.1 <jean_510@orange.fr>: Recipient address rejected: User unknown"),
        (OLC, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient corp-001@hotmail.com not found"),
        ("mx2.comcast.net", "550 5.1.1 <girl000012@comcast.net> Recipient address rejected"),
        *[
            (host, form.format(address))
            for host, _, text, _, pace, _ in REAL
            if not isinstance(pace, Unchanged)
            for address in (f'"{text[4:]}"@x.example', f"{re.sub('[^a-zA-Z0-9-]+', '.', text[4:])}@x.example")
            for form in ("550 5.1.1 <{}>: no such user", "450 4.7.1 <{}>... wait", "550 5.1.1 {} is unknown")
        ],
    ],
)
def test_an_address_is_only_an_address(host: str, text: str) -> None:
    """Servers repeat it, and whoever sends mail chooses it: no word in it is heard as the provider's."""
    verdict = judge(Stage.RCPT, heard(text), host, "recipient.example", RULES)
    assert (verdict.pace, verdict.scope) == (Unchanged(), Scope.RECIPIENT), verdict.rule
    assert type(verdict.outcome) is (F if text[0] == "5" else D)


def test_hide_my_email() -> None:
    """By the recipient's domain, whatever its hosts are called."""
    refused = Failed(heard("550 5.7.1 Relay not permitted"), Stage.RCPT, "mx.example")
    assert class_of(refused, "privaterelay.appleid.com", RULES).value == "inactive-mailbox"


def test_each_rule_is_within_reach() -> None:
    """Names are unique, each part of the file names its source, and none of the rules fails mail that a code defers: a shipped rule
    may be wrong, and a notice can not be taken back."""
    rules = shipped()
    assert len({rule.name for rule in rules}) == len(rules) > 40
    text = resources.files("relaycluster.policy").joinpath("providers.toml").read_text("utf-8")
    parts = re.findall(r"^# --- (.*?) -+$", text, re.MULTILINE)
    assert len(parts) >= 10
    assert all(": " in part or "; " in part for part in parts if part != "Everybody")
    for rule in rules:
        assert type(rule.action).__name__ != "Fail"
        assert (
            rule.domains
            or rule.mx_suffixes
            or rule.name
            in ("too many connections", "rate limit of our address", "rate limit", "on a public block list")
        )


def test_switched_off() -> None:
    """Without the shipped rules the codes decide."""
    verdict = judge(Stage.MAIL, heard(REAL[22][2]), OLC, "outlook.com", rules_of((), False))
    assert isinstance(verdict.outcome, Failed)
