"""Makes `twistd relaycluster` known; everything else is in `relaycluster.tap`."""

from twisted.application.service import ServiceMaker

relaycluster = ServiceMaker(
    "relaycluster", "relaycluster.tap", "An SMTP relay that runs as one cluster on several hosts.", "relaycluster"
)
