// The parts of a Kubernetes control plane that the tests run, as one program: the first argument names the part.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

var parts = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
}

func main() {
	part := ""
	if len(os.Args) > 1 {
		part, os.Args = os.Args[1], os.Args[1:] // what each part reads
	}
	if server, known := parts[part]; known {
		os.Exit(cli.Run(server()))
	}
	if part != "kubectl" {
		fmt.Fprintln(os.Stderr, "the first argument is kube-apiserver, kube-controller-manager or kubectl")
		os.Exit(2)
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
