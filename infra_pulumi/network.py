"""The network that machines start in. Nothing can connect to them; they reach out, to S3 without leaving AWS.

`public` gives each machine an address of its own and costs nothing; `private` shares that of a NAT gateway.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra_pulumi.place import Place
from infra_pulumi.settings import NetworkSettings

ANYWHERE = "0.0.0.0/0"


class Network(pulumi.ComponentResource):
    mode: str
    vpc_id: pulumi.Output[str]
    subnet_ids: list[pulumi.Output[str]]
    security_group_id: pulumi.Output[str]
    assign_public_ip: bool  # to Fargate tasks; machines get theirs from the subnet

    def __init__(self, place: Place, settings: NetworkSettings, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("pagefleet:aws:Network", f"{place.prefix}-network", None, opts)
        self._place = place
        self._child = pulumi.ResourceOptions(parent=self)
        self.mode = settings.mode
        if settings.mode == "existing":
            self.vpc_id = pulumi.Output.from_input(str(settings.vpc_id))
            self.subnet_ids = [pulumi.Output.from_input(subnet) for subnet in settings.subnet_ids]
            self.assign_public_ip = settings.assign_public_ip
        else:
            self.assign_public_ip = settings.mode == "public"
            self._make(settings)
        self.security_group_id = self._security_group(settings)
        self.register_outputs({"vpcId": self.vpc_id, "subnetIds": self.subnet_ids})

    def _make(self, settings: NetworkSettings) -> None:
        prefix = self._place.prefix
        vpc = aws.ec2.Vpc(
            f"{prefix}-vpc",
            cidr_block=str(settings.cidr),
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags={"Name": prefix},
            opts=self._child,
        )
        self.vpc_id = vpc.id
        # Whatever forgets to name a security group gets this one, which lets nothing through.
        aws.ec2.DefaultSecurityGroup(f"{prefix}-closed", vpc_id=vpc.id, ingress=[], egress=[], opts=self._child)
        gateway = aws.ec2.InternetGateway(f"{prefix}-gateway", vpc_id=vpc.id, opts=self._child)
        zones = aws.get_availability_zones_output(
            state="available",
            filters=[aws.GetAvailabilityZonesFilterArgs(name="opt-in-status", values=["opt-in-not-required"])],
            opts=pulumi.InvokeOutputOptions(parent=self),
        ).names

        public_routes = self._route_table("public", gateway_id=gateway.id)
        public = [
            self._subnet(f"public-{number}", str(cidr), zones[number], public_routes, public=True)
            for number, cidr in enumerate(settings.public())
        ]
        tables, self.subnet_ids = [public_routes], public
        if settings.mode == "private":
            address = aws.ec2.Eip(f"{prefix}-nat", domain="vpc", tags={"Name": f"{prefix}-nat"}, opts=self._child)
            # One for all zones: a second costs as much again, and a run survives the loss of a zone by being resumed.
            nat = aws.ec2.NatGateway(
                f"{prefix}-nat",
                allocation_id=address.allocation_id,
                subnet_id=public[0],
                tags={"Name": prefix},
                opts=pulumi.ResourceOptions(parent=self, depends_on=[gateway]),
            )
            private_routes = self._route_table("private", nat_gateway_id=nat.id)
            self.subnet_ids = [
                self._subnet(f"private-{number}", str(cidr), zones[number], private_routes, public=False)
                for number, cidr in enumerate(settings.private())
            ]
            tables.append(private_routes)
        aws.ec2.VpcEndpoint(
            f"{prefix}-s3",
            vpc_id=vpc.id,
            service_name=f"com.amazonaws.{self._place.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in tables],
            tags={"Name": f"{prefix}-s3"},
            opts=self._child,
        )

    def _route_table(
        self, name: str, gateway_id: pulumi.Input[str] | None = None, nat_gateway_id: pulumi.Input[str] | None = None
    ) -> aws.ec2.RouteTable:
        prefix = self._place.prefix
        table = aws.ec2.RouteTable(
            f"{prefix}-{name}", vpc_id=self.vpc_id, tags={"Name": f"{prefix}-{name}"}, opts=self._child
        )
        aws.ec2.Route(
            f"{prefix}-{name}-out",
            route_table_id=table.id,
            destination_cidr_block=ANYWHERE,
            gateway_id=gateway_id,
            nat_gateway_id=nat_gateway_id,
            opts=self._child,
        )
        return table

    def _subnet(
        self, name: str, cidr: str, zone: pulumi.Input[str], table: aws.ec2.RouteTable, *, public: bool
    ) -> pulumi.Output[str]:
        prefix = self._place.prefix
        subnet = aws.ec2.Subnet(
            f"{prefix}-{name}",
            vpc_id=self.vpc_id,
            cidr_block=cidr,
            availability_zone=zone,
            map_public_ip_on_launch=public and self.assign_public_ip,
            tags={"Name": f"{prefix}-{name}"},
            opts=self._child,
        )
        aws.ec2.RouteTableAssociation(
            f"{prefix}-{name}", subnet_id=subnet.id, route_table_id=table.id, opts=self._child
        )
        return subnet.id

    def _security_group(self, settings: NetworkSettings) -> pulumi.Output[str]:
        prefix = self._place.prefix
        group = aws.ec2.SecurityGroup(
            f"{prefix}-machines",
            description="Pagefleet jobs: nothing in, few ports out",
            vpc_id=self.vpc_id,
            tags={"Name": f"{prefix}-machines"},
            opts=self._child,
        )
        for port in settings.egress_ports:
            aws.vpc.SecurityGroupEgressRule(
                f"{prefix}-out-{port}",
                security_group_id=group.id,
                description="AWS services, model hubs, reading services",
                ip_protocol="tcp",
                from_port=port,
                to_port=port,
                cidr_ipv4=ANYWHERE,
                opts=self._child,
            )
        return group.id
