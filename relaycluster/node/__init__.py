"""What a node does all day: accept mail, deliver it, be a member, leave."""
